"""No error tells of the inside: no path of a file, no name of a class, no traceback."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from typing import Any

import grpc
import pytest
from auth_doubles import ADMIN_KEY, FULL_KEY, MODEL_KEY, AppClient, bearer_header, config_with_keys
from inference_doubles import InferenceClient, OperationDouble, operation_doubles

from appliance.api.grpc.server import create_server
from appliance.config.server import ServerConfig
from appliance.core.errors import ArtifactCorruptError, EngineDeadError, LoadError
from appliance.models.health import ConfigStatus
from appliance.models.state import State
from appliance.telemetry.recorder import RequestRecorder
from appliance.tensors.grpc import inference_pb2 as pb
from appliance.tensors.grpc.inference_pb2_grpc import GRPCInferenceServiceStub

INSIDE = re.compile(
    r"Traceback|\.py\b|site-packages|/(?:root|home|tmp|usr|models|opt|var)/|\b\w*(?:Error|Exception)\b(?!\")|0x[0-9a-f]{6}|<class"
)

FAULTS: dict[str, Callable[[], Exception]] = {
    "unforeseen": lambda: RuntimeError("/root/secret/weights.py is gone"),
    "a key": lambda: KeyError("/models/secret"),
    "dead": lambda: EngineDeadError("the engine died: ZeroDivisionError in /usr/lib/engine.py"),
    "load": lambda: LoadError("/models/secret/config.json: is no JSON"),
    "storage": lambda: ArtifactCorruptError("/var/cache/appliance/blobs/1 has other bytes"),
    "os": lambda: FileNotFoundError(2, "No such file", "/home/user/file"),
}

ASKED: list[tuple[str, str, Any]] = [
    ("POST", "/v1/completions", {"model": "writer", "prompt": "a"}),
    ("POST", "/openai/v1/chat/completions", {"model": "writer", "messages": []}),
    ("POST", "/v1/completions", {"model": "writer", "prompt": "stream", "stream": True}),
    ("POST", "/v1/messages", {"model": "everything", "messages": []}),
    ("POST", "/v1/embeddings", {"model": "embedder", "input": "a"}),
    ("POST", "/v1/rerank", {"model": "ranker", "query": "a", "documents": ["b"]}),
    ("POST", "/v1/models/writer:predict", {"instances": ["a"]}),
    ("POST", "/v1/models/echo:explain", {"instances": [[1]]}),
    ("POST", "/v2/models/writer/generate", {"text_input": "a"}),
    ("POST", "/v2/models/writer/generate_stream", {"text_input": "a"}),
    (
        "POST",
        "/v2/models/embedder/infer",
        {"inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["a"]}]},
    ),
]

ODD: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/nowhere", {}),
    ("GET", "/../../etc/passwd", {}),
    ("PUT", "/v1/completions", {}),
    ("POST", "/v1/completions", {"content": b"{"}),
    ("POST", "/v1/completions", {"content": b"\xff"}),
    ("POST", "/v1/completions", {"content": b"[" * 100_000}),
    ("POST", "/v1/completions", {"json": {"model": {"a": 1}}}),
    ("POST", "/v1/completions", {"content": b"a" * 9000}),
    ("POST", "/v1/audio/transcriptions", {"content": b"--", "headers": {"content-type": "multipart/form-data"}}),
    ("POST", "/v1/models/writer:predict", {"content": b"{", "headers": {"content-encoding": "gzip"}}),
    ("POST", "/v1/models/writer:predict", {"json": {"instances": {"a": 1}}}),
    ("POST", "/v2/models/echo/infer", {"json": {"inputs": [{"name": "in", "datatype": "X", "shape": "y"}]}}),
    ("POST", "/v2/models/echo/infer", {"content": b"{}", "headers": {"inference-header-content-length": "x"}}),
    ("POST", "/v2/models/echo/infer", {"content": b"{}", "headers": {"content-encoding": "br"}}),
    ("POST", "/v2/repository/index", {"content": b"["}),
    ("POST", "/v2/repository/models/writer/unload", {}),
    ("GET", "/v2/models/writer/versions/9", {}),
    ("GET", "/v1/models/nobody", {}),
]


@pytest.fixture(scope="module")
async def client() -> AsyncGenerator[InferenceClient]:
    """Of an application with a model of each kind, which a test may break as long as it mends them."""
    async with InferenceClient(operation_doubles(server=ServerConfig(max_body_bytes=8192))) as client:
        yield await client.wait_until_ready()
        await client.manager.stop()


def _break(client: InferenceClient, fault: Exception | None) -> None:
    for entry in client.manager.statuses:
        model = entry.model
        assert isinstance(model, OperationDouble)
        model.answer_fault = fault


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("method", "path", "body"), ASKED, ids=[f"{path}-{len(str(body))}" for _, path, body in ASKED])
async def test_a_broken_model_says_nothing_of_itself(
    client: InferenceClient, method: str, path: str, body: Any, fault: str
) -> None:
    """Whatever it breaks over, and whatever protocol asks."""
    _break(client, FAULTS[fault]())
    try:
        answer = await client.request(method, path, json=body)
    finally:
        _break(client, None)

    assert answer.status_code >= 400 or "error" in answer.text
    assert not INSIDE.search(answer.text)


@pytest.mark.parametrize(
    ("method", "path", "sent"), ODD, ids=[f"{number}-{each[1]}" for number, each in enumerate(ODD)]
)
async def test_an_odd_request_hears_nothing_of_the_inside(
    client: InferenceClient, method: str, path: str, sent: dict[str, Any]
) -> None:
    """What is malformed, unknown, too large or not allowed is refused in the protocol's own words."""
    answer = await client.request(method, path, **sent)

    assert 400 <= answer.status_code < 500
    assert not INSIDE.search(answer.text)


async def test_a_failed_model_is_refused_without_its_reason() -> None:
    """Why it failed is for the probes."""
    async with InferenceClient(operation_doubles("writer")) as client:
        model = client.manager.statuses[0].model
        assert isinstance(model, OperationDouble)
        model.load_fault = LoadError("/models/secret/config.json: is no JSON")
        client.manager.start()
        async with asyncio.timeout(20):
            while client.manager.health().is_live:
                await asyncio.sleep(0.01)
        answers = [
            await client.post("/v1/completions", json={"model": "writer"}),
            await client.post("/v2/models/writer/generate", json={"text_input": "a"}),
            await client.get("/v2/models/writer/ready"),
            await client.post("/v2/repository/index"),
        ]
        remote, forwarded, rebound, local = [
            await client.get("/readyz", headers=headers)
            for headers in (
                {},
                {"Host": "localhost", "X-Forwarded-For": "10.1.2.3"},
                {"Host": "evil.example"},
                {"Host": "localhost:8080"},
            )
        ]
        await client.manager.stop()

    assert [answer.status_code for answer in answers] == [503, 503, 503, 200]
    assert not [answer.text for answer in answers if INSIDE.search(answer.text)]
    assert rebound.json() == {"status": "not ready", "models": []}
    for probe in (remote, forwarded):
        assert probe.json()["models"][0]["reason"] == "see the log"
        assert not INSIDE.search(probe.text)
    assert "/models/secret" in local.text


REASONS = [
    ("failed", "/models/secret/config.json: is no JSON", "see the log"),
    ("restarting", "unexpected KeyError: 'secret'", "see the log"),
    ("unavailable", "no upstream answers", "no upstream answers"),
    (
        "unavailable",
        "its target refused it, because localhost:3 knows the key secret",
        "its target refused it; see the log",
    ),
    ("loading", "restart 2, because unexpected KeyError: 'secret'", "restart 2; see the log"),
    ("ready", "it answers", "it answers"),
]


@pytest.mark.parametrize(("state", "reason", "shown"), REASONS, ids=[reason for _, reason, _ in REASONS])
async def test_why_a_model_is_unwell_is_for_operators(state: str, reason: str, shown: str) -> None:
    """A key that sees every model, and an operator's, read the error; others read that there is one, clients too."""
    async with AppClient(config_with_keys()) as client:
        entry = client.manager.statuses[0]
        entry.state, entry.reason = State(state), reason
        seen = {
            key: [
                each["reason"] for each in (await client.get("/readyz", headers=bearer_header(key))).json()["models"]
            ][:1]
            for key in (FULL_KEY, ADMIN_KEY, MODEL_KEY)
        }
        entry.state = State(state)
        index = (await client.post("/v2/repository/index", headers=bearer_header(MODEL_KEY))).text
        asked = (await client.post("/v1/completions", json={"model": "one"}, headers=bearer_header(MODEL_KEY))).text

    assert seen == {FULL_KEY: [reason], ADMIN_KEY: [reason], MODEL_KEY: [shown]}
    assert "secret" not in index + asked


async def test_the_state_of_the_file_is_for_those_who_see_every_model() -> None:
    """What is wrong with a new file quotes it, and which models it brings is not for every key."""
    async with AppClient(config_with_keys()) as client:
        client.manager.config_status = ConfigStatus("digest", "now", error="/root/config.yaml:1:1: secret")
        full = (await client.get("/readyz", headers=bearer_header(FULL_KEY))).json()
        some = (await client.get("/readyz", headers=bearer_header(MODEL_KEY))).json()
        none = (await client.get("/readyz")).json()

    assert "secret" in full["config"]["error"]
    assert "config" not in some
    assert "config" not in none


@pytest.mark.parametrize("fault", FAULTS)
async def test_grpc_says_nothing_of_the_inside(client: InferenceClient, fault: str) -> None:
    """Its details are as bare as the bodies of HTTP."""
    of = operation_doubles(server=ServerConfig(host="127.0.0.1"))
    server, port = create_server(of, client.manager, client.manager.health, RequestRecorder(of))
    await server.start()
    _break(client, FAULTS[fault]())
    tensor = pb.ModelInferRequest.InferInputTensor(name="text_input", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"a")
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ModelInfer(pb.ModelInferRequest(model_name="embedder", inputs=[tensor]))
    finally:
        _break(client, None)
        await server.stop(None)

    assert not INSIDE.search(caught.value.details() or "")
