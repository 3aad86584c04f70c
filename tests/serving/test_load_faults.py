"""Models that vLLM cannot serve: each fails alone, at once, and says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server_process import ServerProcess, wait_until


def _copy(model: Path, folder: Path, without: str) -> Path:
    shutil.copytree(model, folder, copy_function=lambda source, target: Path(target).symlink_to(source))
    for path in folder.glob(without):
        path.unlink()
    return folder


@pytest.mark.slow
def test_each_fault_is_named_with_its_reason(
    serve: Callable[..., ServerProcess], smollm2: Path, tmp_path: Path
) -> None:
    """Liveness is 503 and each model's reason names the fault; nothing is retried and nothing hangs."""
    broken = _copy(smollm2, tmp_path / "broken", without="model.safetensors")
    (broken / "model.safetensors").write_bytes(b"not safetensors at all")
    cut = _copy(smollm2, tmp_path / "cut", without="model.safetensors")
    (cut / "model.safetensors").write_bytes((smollm2 / "model.safetensors").read_bytes()[:1_000_000])
    config = json.loads((smollm2 / "config.json").read_text())
    unknown = _copy(smollm2, tmp_path / "unknown", without="config.json")
    (unknown / "config.json").write_text(json.dumps(config | {"architectures": ["NobodyForCausalLM"]}))
    folders = {
        "template": _copy(smollm2, tmp_path / "template", without="chat_template.jinja"),
        "weights": _copy(smollm2, tmp_path / "weights", without="*.safetensors"),
        "broken": broken,
        "cut": cut,
        "unknown": unknown,
        "file": smollm2,
        "parser": smollm2,
        "adapter": smollm2,
    }
    models: list[dict[str, Any]] = [
        {"name": name, "class": "generative", "storage": {"uri": str(folder)}} for name, folder in folders.items()
    ]
    models[5]["chat_template"] = "no/such/template.jinja"
    models[6]["tool_call_parser"] = "nobodys"
    models[7]["adapters"] = [{"name": "x", "storage": {"uri": str(smollm2)}}]
    file = tmp_path / "faults.yaml"
    file.write_text(json.dumps({"models": models}))

    server = serve(file=file)
    wait_until(lambda: server.state() is not None, 60)
    wait_until(
        lambda: {each["state"] for each in server.get("/livez")[1]["models"]} == {"failed"}, 280, server.log_tail
    )
    status, body = server.get("/livez")
    reasons = {model["name"]: model["reason"] for model in body["models"]}

    assert status == 503
    assert "chat template" in reasons["template"]
    assert "class: adapter" in reasons["template"]
    assert "safetensors" in reasons["weights"]
    assert "is not a safetensors file" in reasons["broken"]
    assert "is incomplete" in reasons["cut"]
    assert "NobodyForCausalLM" in reasons["unknown"]
    assert "no/such/template.jinja" in reasons["file"]
    assert "nobodys" in reasons["parser"]
    assert "adapter_config.json" in reasons["adapter"]
    assert not [reason for reason in reasons.values() if "unexpected" in reason]
    assert server.stop() == 0
