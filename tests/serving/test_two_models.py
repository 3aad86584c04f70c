"""Two engines in one process: each lives and dies for itself."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from questions import CHAT
from server_process import ServerProcess, has_exited, open_stream, wait_until

PATH = "/v1/chat/completions"
STORY = CHAT | {"stream": True, "ignore_eos": True, "max_tokens": 450}
ENGINE = {"max_model_len": 512, "kv_cache_memory_bytes": 100_000_000}


def _cores(server: ServerProcess) -> list[psutil.Process]:
    """The engine cores: the children of the fork server. Which of them is whose, nothing says."""
    return [process for process in server.descendants() if process.ppid() != server.process.pid]


@pytest.mark.slow
def test_an_engine_that_dies_fails_within_two_seconds_and_the_other_answers_on(
    serve: Callable[..., ServerProcess], smollm2: Path, tmp_path: Path
) -> None:
    """
    After `kill -9` of an engine core its stream ends, liveness is 503 with the reason, and calls get 503; the other one
    answers, and drains at the end.
    """
    models = [
        {"name": name, "class": "generative", "storage": {"uri": str(smollm2)}, "engine": ENGINE} for name in "ab"
    ]
    file = tmp_path / "two.yaml"
    file.write_text(json.dumps({"models": models}))

    server = serve(file=file)
    wait_until(lambda: server.get("/readyz")[0] == 200, 240, server.log_tail)
    for name in "ab":
        server.post(PATH, CHAT | {"model": name})
    with urllib.request.urlopen(f"{server.url}/metrics") as response:
        scraped = response.read().decode()
    core, other_core = _cores(server)
    with ExitStack() as opened:
        streams = {name: opened.enter_context(open_stream(server.port, PATH, STORY | {"model": name})) for name in "ab"}
        assert all(b"200 OK" in stream.recv(1024) for stream in streams.values())
        core.kill()
        wait_until(lambda: server.get("/livez")[0] == 503, 10)
        _, body = server.get("/livez")
        reasons = {model["name"]: model["reason"] for model in body["models"] if model["state"] == "failed"}
        (dead,) = reasons
        streams[dead].settimeout(10)
        while streams[dead].recv(65536):
            pass
    wait_until(lambda: has_exited(core), 10)
    (other,) = {"a", "b"} - {dead}
    refused, error = server.post(PATH, CHAT | {"model": dead})
    answered, answer = server.post(PATH, CHAT | {"model": other})

    # vLLM forgets the metrics of one engine when it starts another.
    names = re.findall(r'^vllm:request_success_total{.*model_name="(.)".*} 1.0$', scraped, re.MULTILINE)
    assert set(names) == {"a", "b"}
    assert "-9" in reasons[dead]
    assert refused == 503
    assert "failed: see the log" in error["error"]["message"]
    assert answered == 200
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert not has_exited(other_core)
    assert server.stop() == 0
