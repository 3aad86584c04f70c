"""
A layout of two devices, on the CPU: vLLM's own processes instead of ours.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from served import Served, is_gone, until


@pytest.fixture
def divisible(smollm2: Path, tmp_path: Path) -> Path:
    """
    A made-up small model whose heads divide by two, without weights: vLLM makes them up.
    """
    folder = tmp_path / "model"
    shutil.copytree(smollm2, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    small = {"num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    (folder / "config.json").write_text(json.dumps(config | small | {"head_dim": 64, "intermediate_size": 512}))
    return folder


@pytest.mark.slow
def test_two_ranks_answer_write_our_log_and_die_with_us(
    serve: Callable[..., Served], divisible: Path, tmp_path: Path
) -> None:
    """
    Tensor parallel over two ranks answers, every process writes JSON, and `kill -9` of the server ends them all.
    """
    model = {
        "name": "tiny",
        "class": "generative",
        "storage": {"uri": str(divisible)},
        "layout": {"tensor_parallel": 2},
        "engine": {"max_model_len": 256, "kv_cache_memory_bytes": 50_000_000, "args": {"load_format": "dummy"}},
    }
    file = tmp_path / "two.yaml"
    file.write_text(json.dumps({"models": [model]}))

    server = serve(file=file).until_ready()
    status, body = server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 4, "ignore_eos": True})
    events = server.events()
    processes = server.descendants()
    server.process.kill()
    server.process.wait(10)

    assert status == 200
    assert body["usage"]["completion_tokens"] == 4
    assert any("vllm" in str(event.get("logger")) for event in events)
    assert len(processes) >= 3
    until(lambda: all(is_gone(process) for process in processes), 3)
