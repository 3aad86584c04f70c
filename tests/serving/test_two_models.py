"""Two engines in one process: each lives and dies for itself."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from questions import CHAT
from server_process import ServerProcess, has_exited, wait_until

ENGINE = {"max_model_len": 512, "kv_cache_memory_bytes": 100_000_000}


def _cores(server: ServerProcess) -> list[psutil.Process]:
    """The engine cores in the order of their start: the children of the fork server."""
    cores = [process for process in server.descendants() if process.ppid() != server.process.pid]
    return sorted(cores, key=lambda process: process.create_time())


@pytest.mark.slow
def test_one_engine_dies_and_the_other_answers_on(
    serve: Callable[..., ServerProcess], smollm2: Path, tmp_path: Path
) -> None:
    """The dead model is named with its reason and refuses; the other one answers, and drains at the end."""
    models = [
        {"name": name, "class": "generative", "storage": {"uri": str(smollm2)}, "engine": ENGINE} for name in "ab"
    ]
    file = tmp_path / "two.yaml"
    file.write_text(json.dumps({"models": models}))

    server = serve(file=file)
    wait_until(lambda: server.get("/readyz")[0] == 200, 240, server.log_tail)
    for name in "ab":
        server.post("/v1/chat/completions", CHAT | {"model": name})
    with urllib.request.urlopen(f"{server.url}/metrics") as response:
        scraped = response.read().decode()
    first, second = _cores(server)
    first.kill()
    wait_until(lambda: server.get("/livez")[0] == 503, 2)
    wait_until(lambda: has_exited(first), 2)
    _, body = server.get("/livez")
    refused, _ = server.post("/v1/chat/completions", CHAT | {"model": "a"})
    answered, answer = server.post("/v1/chat/completions", CHAT | {"model": "b"})

    # vLLM forgets the metrics of one engine when it starts another.
    names = re.findall(r'^vllm:request_success_total{.*model_name="(.)".*} 1.0$', scraped, re.MULTILINE)
    assert set(names) == {"a", "b"}
    assert [model["state"] for model in body["models"]] == ["failed", "ready"]
    assert refused == 503
    assert answered == 200
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert not has_exited(second)
    assert server.stop() == 0
