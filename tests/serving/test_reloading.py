"""A real engine that is replaced while another model answers."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from questions import CHAT
from repeated_requests import RepeatedRequests, chat_bodies
from server_process import ServerProcess, wait_until
from upstreams import Upstream

PATH = "/v1/chat/completions"


def _config(server: ServerProcess) -> dict[str, Any]:
    config: dict[str, Any] = server.get("/readyz")[1]["config"]
    return config


def _length(server: ServerProcess) -> int:
    length: int = server.get("/v1/models/a")[1]["max_model_len"]
    return length


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_engine_is_replaced_and_the_other_model_loses_nothing(
    serve: Callable[..., ServerProcess], smollm2: Path, upstream: Upstream, tmp_path: Path
) -> None:
    """
    A storage that fails leaves the engine alone, an engine that refuses brings it back, and a good one takes its place;
    an alias needs none of that.
    """
    engine = {"max_model_len": 512, "kv_cache_memory_bytes": 100_000_000}
    generative = {"name": "a", "class": "generative", "storage": {"uri": str(smollm2)}, "engine": engine}
    proxy = {"name": "b", "class": "proxy", "upstreams": [{"url": upstream.url}]}
    file = tmp_path / "two.yaml"

    def change(**keys: object) -> None:
        file.write_text(json.dumps({"models": [generative | keys, proxy]}))
        server.process.send_signal(signal.SIGHUP)

    file.write_text(json.dumps({"models": [generative, proxy]}))
    server = serve(file=file).wait_until_ready()
    first = _config(server)["digest"]
    with RepeatedRequests(server, PATH, *chat_bodies("b")) as asking:
        change(storage={"uri": str(tmp_path / "nowhere")})
        wait_until(lambda: _config(server)["error"] is not None, 60, server.log_tail)
        assert "models.a: " in _config(server)["error"]
        assert server.post(PATH, CHAT | {"model": "a"})[0] == 200

        change(engine=engine | {"max_model_len": 1_000_000})
        wait_until(lambda: "1000000" in (_config(server)["error"] or ""), 240, server.log_tail)
        wait_until(lambda: server.state() == "ready", 240, server.log_tail)
        assert (_length(server), _config(server)["digest"]) == (512, first)

        change(engine=engine | {"max_model_len": 256})
        wait_until(lambda: _config(server)["digest"] != first, 240, server.log_tail)
        asking.wait_for_more()

    assert asking.failures == []
    assert _length(server) == 256
    _, answer = server.post(PATH, CHAT | {"model": "a"})
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert all(each["state"] != "failed" for each in server.get("/livez")[1]["models"])

    starts = _starts(server)
    alias = {"name": "brief", "request": {"override": {"max_tokens": 1}}}
    change(engine=engine | {"max_model_len": 256}, aliases=[alias])
    wait_until(lambda: server.post(PATH, CHAT | {"model": "brief"})[0] == 200, 60, server.log_tail)
    answer = server.post(PATH, CHAT | {"model": "brief"})[1]
    assert (answer["model"], answer["usage"]["completion_tokens"]) == ("brief", 1)
    assert _starts(server) == starts
    assert server.stop() == 0


def _starts(server: ServerProcess) -> int:
    """How many engines have started."""
    return sum(each["event"] == "engine.started" for each in server.events())
