"""A layout of two devices, on the CPU: vLLM's own processes instead of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from server_process import ServerProcess, has_exited, wait_until


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tensor_parallel", pytest.param("data_parallel", marks=pytest.mark.long)])
def test_two_ranks_answer_write_our_log_and_die_with_us(
    serve: Callable[..., ServerProcess], divisible: Path, tmp_path: Path, size: str
) -> None:
    """A model over two ranks, or two copies of it, answers, every process writes JSON, and `kill -9` of the server ends
    them all.
    """
    model = {
        "name": "tiny",
        "class": "generative",
        "storage": {"uri": str(divisible)},
        "layout": {size: 2},
        "engine": {"max_model_len": 256, "kv_cache_memory_bytes": 50_000_000, "args": {"load_format": "dummy"}},
    }
    file = tmp_path / "two.yaml"
    file.write_text(json.dumps({"models": [model]}))

    server = serve(file=file).wait_until_ready()
    status, body = server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 4, "ignore_eos": True})
    events = server.events()
    processes = server.descendants()
    server.process.kill()
    server.process.wait(10)

    assert status == 200
    assert body["usage"]["completion_tokens"] == 4
    assert any("vllm" in str(event.get("logger")) for event in events)
    assert len(processes) >= 3
    wait_until(lambda: all(has_exited(process) for process in processes), 10)
