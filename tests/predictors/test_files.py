"""The files of predictors: which one is loaded, and what is said of others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper
from predictors.conftest import ROWS
from predictors.test_predictors import FRAMEWORKS, loaded, predict

from appliance.config import load
from appliance.core.errors import ConfigError, LoadError, MissingExtraError
from appliance.models.factory import ModelFactory

Write = Callable[..., Path]


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_a_broken_file_is_refused(framework: str, write_file: Write, tmp_path: Path) -> None:
    """The message names the file and the framework."""
    file = tmp_path / {"sklearn": "m.pkl", "onnx": "m.onnx", "xgboost": "m.json", "lightgbm": "m.txt"}[framework]
    file.write_bytes(b"this is no model")

    with pytest.raises(LoadError, match=f"{file.name}: {framework} cannot load it"):
        await loaded(write_file, tmp_path, framework)


async def test_pickles_need_permission(write_file: Write, model_files: Path) -> None:
    """A model of scikit-learn is refused with its line, before anything is downloaded."""
    with pytest.raises(ConfigError, match="allow_pickle: true"):
        load(write_file(model_files / "sklearn", {"framework": "sklearn"}))

    load(write_file(model_files / "onnx", {"framework": "onnx"}))


def test_a_pickle_beside_the_model_is_not_read(write_file: Write, model_files: Path, tmp_path: Path) -> None:
    """And needs no permission, in a directory that is used in place as in a store."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "model.onnx").write_bytes((model_files / "onnx/model.onnx").read_bytes())
    (folder / "model.pkl").write_bytes(b"a pickle")
    config = load(write_file(folder, {"framework": "onnx"})).config
    factory = ModelFactory()
    paths = factory.materialize(config.models[0], config.storage, lambda *_: None)
    factory.require_complete(config.models[0], paths)

    assert paths == {"model": folder}


async def test_a_directory_must_have_one_model(write_file: Write, model_files: Path, tmp_path: Path) -> None:
    """None and several are errors that name what was found; files in the directory itself come first, as in KServe."""
    onnx = (model_files / "onnx/model.onnx").read_bytes()
    with pytest.raises(LoadError, match=r"no file of onnx; it must have one that ends in \.onnx"):
        await loaded(write_file, tmp_path, "onnx")
    (tmp_path / "1").mkdir()
    (tmp_path / "1/model.onnx").write_bytes(onnx)
    await loaded(write_file, tmp_path, "onnx")
    (tmp_path / "first.onnx").write_bytes(onnx)
    await loaded(write_file, tmp_path, "onnx")
    (tmp_path / "second.onnx").write_bytes(onnx)
    with pytest.raises(LoadError, match=r"2 files of onnx \(first.onnx, second.onnx\)"):
        await loaded(write_file, tmp_path, "onnx")


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_a_missing_library_is_named_with_its_extra(
    framework: str, write_file: Write, model_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extras have the names of the frameworks."""
    module = {"onnx": "onnxruntime"}.get(framework, framework)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"appliance.engines.frameworks.{framework}", raising=False)

    with pytest.raises(MissingExtraError, match=rf"appliance\[{framework}\]"):
        await loaded(write_file, model_files / framework, framework)


async def test_a_damaged_file_of_lightgbm_ends_no_server(write_file: Write, model_files: Path, tmp_path: Path) -> None:
    """The library ends its process on it; another one tries the file first."""
    text = (model_files / "lightgbm/model.txt").read_bytes()
    (tmp_path / "model.txt").write_bytes(text[:700])

    with pytest.raises(LoadError, match=r"model.txt: lightgbm crashes on it \(signal \d+\); the file is damaged"):
        await loaded(write_file, tmp_path, "lightgbm")


async def test_errors_have_no_stack_traces_of_libraries(write_file: Write, model_files: Path, tmp_path: Path) -> None:
    """XGBoost appends that of its C++ code."""
    (tmp_path / "model.bst").write_bytes((model_files / "lightgbm/model.txt").read_bytes())

    with pytest.raises(LoadError, match="xgboost cannot load it: XGBoostError") as raised:
        await loaded(write_file, tmp_path, "xgboost")

    assert "Stack trace" not in str(raised.value)


@pytest.mark.parametrize("format_", ["json", "ubj"])
async def test_a_suffix_of_xgboost_says_nothing_of_the_format(
    format_: str, write_file: Write, boosters: tuple[Any, Any], tmp_path: Path
) -> None:
    """A `.bst` may hold either."""
    (tmp_path / "model.bst").write_bytes(boosters[0].save_raw(format_))

    assert len(await predict(await loaded(write_file, tmp_path, "xgboost"), {"instances": ROWS})) == 2


@pytest.mark.parametrize("words", [("plan",), ("pull",), ("validate", "--deep")], ids=" ".join)
def test_several_models_are_refused_before_a_start(
    words: Sequence[str], write_file: Write, model_files: Path, tmp_path: Path
) -> None:
    """By each command that reads the files, in the words of the start."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("first.onnx", "second.onnx"):
        (folder / name).write_bytes((model_files / "onnx/model.onnx").read_bytes())
    command = [sys.executable, "-m", "appliance", *words, str(write_file(folder, {"framework": "onnx"}))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 4
    assert "has 2 files of onnx (first.onnx, second.onnx); name the one to load in storage.uri" in (
        done.stdout + done.stderr
    )


async def test_onnx_outputs_that_are_no_tensors_are_named(write_file: Write, tmp_path: Path) -> None:
    """With their type, and what else to do."""
    nodes = [helper.make_node("SequenceConstruct", ["x", "x"], ["parts"])]
    graph = helper.make_graph(
        nodes,
        "parts",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])],
        [helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())

    with pytest.raises(LoadError, match=r"'parts' is a seq\(tensor\(float\)\); convert the model"):
        await loaded(write_file, tmp_path, "onnx")
