"""Models whose names have colons, plus signs, slashes and letters of any script."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from server_process import ServerProcess, free_port
from upstreams import Upstream

from appliance.tensors.grpc import inference_pb2 as pb
from appliance.tensors.grpc.inference_pb2_grpc import GRPCInferenceServiceStub

KEY = {"Authorization": "Bearer a-key-of-some-length"}
METRICS_KEY = {"Authorization": "Bearer the-key-of-operators"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
OWN, ALIASES = "qwen3:8b", ("org/modèle+1", "模型:7b", "модель")


@pytest.fixture
def server(serve: Callable[..., ServerProcess], upstream: Upstream, tmp_path: Path) -> ServerProcess:
    """A proxy with such names, with a key for two of them, and an RPC server."""
    proxy = {"name": OWN, "class": "proxy", "aliases": ALIASES, "upstreams": [{"url": upstream.url}]}
    other = {"name": "other:8b", "class": "proxy", "upstreams": [{"url": upstream.url}]}
    keys = [
        {"name": "k", "value": KEY["Authorization"].removeprefix("Bearer "), "models": [OWN]},
        {"name": "metrics", "value": METRICS_KEY["Authorization"].removeprefix("Bearer ")},
    ]
    file = tmp_path / "names.yaml"
    file.write_text(json.dumps({"models": [proxy, other], "server": {"api_keys": keys, "grpc_port": free_port()}}))
    return serve(file=file).wait_until_ready(60)


def test_a_model_is_served_under_any_name(server: ServerProcess, upstream: Upstream, tmp_path: Path) -> None:
    """In bodies, in paths as they are and percent-encoded, in RPCs, for keys and in metrics; others stay unknown."""
    config = json.loads((tmp_path / "names.yaml").read_text())
    with grpc.insecure_channel(f"127.0.0.1:{config['server']['grpc_port']}") as channel:
        rpc: Any = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        metadata = (("authorization", KEY["Authorization"]),)
        for name in (OWN, *ALIASES):
            whole, path = quote(name, safe=""), quote(name, safe="/:+@")
            assert server.ask("/v1/chat/completions", {"model": name, **CHAT}, KEY)[1]["model"] == name
            for part in {whole, path}:
                assert server.ask(f"/v1/models/{part}", None, KEY)[1]["id"] == name
                assert server.ask(f"/v2/models/{part}/ready", None, KEY)[1]["name"] == name
                assert server.ask(f"/v1/models/{part}:predict", {"instances": ["Hi"]}, KEY)[0] == 200
                assert server.ask(f"/v1/models/{part}:explain", {"instances": ["Hi"]}, KEY)[0] == 400
                assert server.ask(f"/v2/models/{part}/generate", {"text_input": "Hi"}, KEY)[1]["model_name"] == name
            assert rpc.ModelReady(pb.ModelReadyRequest(name=name), metadata=metadata).ready

    listed = [each["id"] for each in server.ask("/v1/models", None, KEY)[1]["data"]]
    event = {**KEY, "ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t"}
    assert listed == [OWN, *ALIASES]
    assert server.ask(f"/v1/models/{quote('模型:7b')}:predict", {"instances": ["Hi"]}, event)[0] == 200
    assert server.ask("/v1/models/other:8b", None, KEY)[0] == 404
    assert server.ask("/v1/models/qwen3:predict", {"instances": ["Hi"]}, KEY)[0] == 404
    assert b'model="qwen3:8b"' in server.stream("/metrics", None, METRICS_KEY)
    assert server.stop() == 0
