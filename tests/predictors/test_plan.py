"""`appliance plan` of predictors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from server_process import environment
from storage.range_server import serving

from appliance.config import load
from appliance.models.factory import ModelFactory


def plan(file: Path, *words: str) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "appliance", "plan", str(file), *words]
    cache = environment(APPLIANCE__STORAGE__CACHE_DIR=str(file.parent / "cache"))
    return subprocess.run(command, capture_output=True, text=True, check=True, env=cache).stdout


def test_the_plan_has_the_bytes_of_the_framework_alone(
    model_files: Path, tmp_path: Path, write_file: Callable[..., Path]
) -> None:
    """Other files beside the model are not its bytes; as text and as JSON, and probes count its start."""
    folder = tmp_path / "model"
    folder.mkdir()
    size = (folder / "model.onnx").write_bytes((model_files / "onnx/model.onnx").read_bytes())
    (folder / "README.md").write_text("x" * 10_000)
    file = write_file(folder, {"framework": "onnx"})
    (found,) = json.loads(plan(file, "--format", "json"))

    assert (found["framework"], found["files"], found["size_bytes"], found["disk_bytes"]) == ("onnx", 1, size, 0)
    assert f"iris: onnx on the CPU, {size} bytes in 1 file" in plan(file)
    assert "startupProbe" in plan(file, "--probes")


def test_of_a_store_only_the_files_of_the_framework_are_planned_and_fetched(
    model_files: Path, tmp_path: Path, write_file: Callable[..., Path]
) -> None:
    """A pickle of the same model beside it needs no permission, because it is left out; the plan fetches nothing."""
    onnx = (model_files / "onnx/model.onnx").read_bytes()
    with serving({"model.onnx": onnx, "model.pkl": b"a pickle" * 1000, "README.md": b"text"}) as store:
        file = write_file(store.uri, {"framework": "onnx"})
        (found,) = json.loads(plan(file, "--format", "json"))
        config = load(file, [f"storage.cache_dir={tmp_path / 'models'}"]).config
        paths = ModelFactory().materialize(config.models[0], config.storage, lambda *_: None)

    assert (found["files"], found["size_bytes"], found["disk_bytes"]) == (1, len(onnx), len(onnx))
    assert [each.name for each in paths["model"].iterdir()] == ["model.onnx"]


def test_each_framework_has_its_bytes(model_files: Path, tmp_path: Path) -> None:
    """In the order of the file."""
    frameworks = ("sklearn", "xgboost", "lightgbm", "onnx")
    models = [
        {
            "name": framework,
            "class": "predictor",
            "storage": {"uri": str(model_files / framework), "allow_pickle": framework == "sklearn"},
            "engine": {"framework": framework},
        }
        for framework in frameworks
    ]
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"models": models}))
    found = json.loads(plan(file, "--format", "json"))
    sizes = [sum(each.stat().st_size for each in (model_files / name).iterdir()) for name in frameworks]

    assert [(each["framework"], each["size_bytes"]) for each in found] == list(zip(frameworks, sizes, strict=True))
