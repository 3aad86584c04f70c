"""Weights of an ONNX model in files of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from predictors.test_predictors import NOBODY, predict
from storage.range_server import serving

from appliance.config import load
from appliance.core.errors import LoadError
from appliance.models.factory import ModelFactory

Write = Callable[..., Path]

WEIGHTS = np.array([1, 2, 3, 4], np.float32).tobytes()


def adding(location: str) -> bytes:
    """A model that adds the weights in the file at this location."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": str(len(WEIGHTS))}.items():
        weights.external_data.add(key=key, value=value)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "adding", ends[:1], ends[1:], [weights])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


async def test_weights_are_downloaded_with_the_model(tmp_path: Path, write_file: Write) -> None:
    """And read from the cache, where both are."""
    with serving({"model.onnx": adding("model.data"), "model.data": WEIGHTS, "README.md": b"text"}) as store:
        config = load(write_file(store.uri, {"framework": "onnx"}), [f"storage.cache_dir={tmp_path / 'models'}"]).config
        materialize = ModelFactory().materialize
        paths = await asyncio.to_thread(materialize, config.models[0], config.storage, lambda *_: None)
    model = ModelFactory().create(config.models[0], NOBODY)
    await model.load(paths)

    assert await predict(model, {"instances": [[1, 1, 1, 1]]}) == [[2, 3, 4, 5]]


@pytest.mark.parametrize("is_absolute", [False, True])
async def test_weights_outside_of_the_models_directory_are_refused(
    is_absolute: bool, tmp_path: Path, write_file: Write
) -> None:
    """A model could otherwise read any file of the server, and answer with it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(WEIGHTS)
    (folder / "model.onnx").write_bytes(adding(str(tmp_path / "secret") if is_absolute else "../secret"))
    model = ModelFactory().create(load(write_file(folder, {"framework": "onnx"})).config.models[0], NOBODY)

    with pytest.raises(LoadError, match="onnx cannot load it"):
        await model.load({"model": folder})
