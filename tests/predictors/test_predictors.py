"""Predictors: what each framework answers, as clients of both versions of the protocol see it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from predictors.conftest import ROWS

from appliance.config import load
from appliance.core.errors import ConfigError, LoadError, MissingExtraError, RequestError
from appliance.core.model import Model, ModelRequest, Operation
from appliance.models.dispatch import PeerClient
from appliance.models.factory import ModelFactory
from appliance.models.model_runner import run_warmup
from appliance.tensors.codec import LENGTH_HEADER, read_response

NOBODY = PeerClient(lambda name: pytest.fail(name))
FRAMEWORKS = ("sklearn", "onnx", "xgboost", "lightgbm")

Write = Callable[..., Path]


async def loaded(write: Write, path: Path, framework: str, **engine: Any) -> Model:
    """The predictor of a config, loaded and proven."""
    allowed = {"allow_pickle": True} if framework == "sklearn" else {}
    config = load(write(path, {"framework": framework, **engine}, **allowed)).config.models[0]
    model = ModelFactory().create(config, NOBODY)
    await model.load({"model": path})
    if model.warmup_request is not None:
        await run_warmup(model, model.warmup_request)
    return model


async def predict(model: Model, body: Any) -> Any:
    """The predictions of version 1."""
    response = await model.handle(ModelRequest(Operation.PREDICTION, json.dumps(body).encode()))
    assert isinstance(response.body, bytes)
    return json.loads(response.body)["predictions"]


async def infer(model: Model, *tensors: dict[str, Any], **more: Any) -> dict[str, tuple[str, tuple[int, ...], Any]]:
    """The outputs of version 2: datatype, shape and values by name."""
    response = await model.handle(
        ModelRequest(Operation.INFERENCE, json.dumps({"inputs": [*tensors], **more}).encode())
    )
    assert isinstance(response.body, bytes)
    outputs = read_response(response.body, response.headers.get(LENGTH_HEADER)).outputs
    return {each.name: (each.datatype, each.shape, each.values()) for each in outputs}


def rows(datatype: str = "FP64", name: str = "input-0") -> dict[str, Any]:
    """The flowers as a tensor."""
    return {"name": name, "datatype": datatype, "shape": [2, 4], "data": ROWS}


async def test_sklearn_predicts_classes_as_kserve_does(write_file: Write, model_files: Path) -> None:
    """A number for each row in version 1, the tensor `output-0` in version 2."""
    model = await loaded(write_file, model_files / "sklearn", "sklearn")

    assert await predict(model, {"instances": ROWS}) == [0, 2]
    assert await predict(model, {"inputs": ROWS}) == [0, 2]
    assert await infer(model, rows()) == {"output-0": ("INT64", (2,), [0, 2])}


async def test_sklearn_gives_probabilities_on_request(write_file: Write, model_files: Path, classifier: Any) -> None:
    """By the config for all requests, by a parameter for one."""
    expected = classifier.predict_proba(ROWS)
    plain = await loaded(write_file, model_files / "sklearn", "sklearn")
    always = await loaded(write_file, model_files / "sklearn", "sklearn", predict_proba=True)
    wanted = {"predict_proba": True}

    assert np.allclose(await predict(plain, {"instances": ROWS, "parameters": wanted}), expected)
    assert np.allclose(await predict(always, {"instances": ROWS}), expected)
    assert await predict(always, {"instances": ROWS, "parameters": {"predict_proba": False}}) == [0, 2]
    datatype, shape, values = (await infer(plain, rows(), parameters=wanted))["output-0"]
    assert (datatype, shape) == ("FP64", (2, 3))
    assert np.allclose(np.reshape(values, (2, 3)), expected)


@pytest.mark.parametrize("framework", ["xgboost", "lightgbm"])
async def test_boosters_give_what_their_objective_gives(
    framework: str, write_file: Write, model_files: Path, boosters: tuple[Any, Any]
) -> None:
    """The same numbers as the library itself, in one thread or several."""
    import xgboost

    expected = boosters[0].predict(xgboost.DMatrix(ROWS)) if framework == "xgboost" else boosters[1].predict(ROWS)
    model = await loaded(write_file, model_files / framework, framework, threads=2)
    _, shape, values = (await infer(model, rows()))["output-0"]

    assert np.allclose(await predict(model, {"instances": ROWS}), expected)
    assert shape == (2, 3)
    assert np.allclose(np.reshape(values, shape), expected)


async def test_onnx_has_the_tensors_of_its_file(write_file: Write, model_files: Path, classifier: Any) -> None:
    """Several outputs are an object for each row in version 1; a single input may have any name, as in KServe."""
    model = await loaded(write_file, model_files / "onnx", "onnx")
    outputs = await infer(model, rows(name="anything"))
    predictions = await predict(model, {"instances": ROWS})

    assert outputs["label"] == ("INT64", (2,), [0, 2])
    assert np.allclose(np.reshape(outputs["probabilities"][2], (2, 3)), classifier.predict_proba(ROWS), atol=1e-5)
    assert [each["label"] for each in predictions] == [0, 2]
    assert await predict(model, {"instances": [{"X": row} for row in ROWS]}) == predictions
    assert await predict(model, {"inputs": {"X": ROWS}}) == predictions


async def test_onnx_maps_of_classes_become_a_tensor(write_file: Write, model_files: Path, classifier: Any) -> None:
    """Converters write probabilities as a mapping for each row unless they are told not to."""
    model = await loaded(write_file, model_files / "mapped.onnx", "onnx")
    datatype, shape, values = (await infer(model, rows()))["output_probability"]

    assert (datatype, shape) == ("FP32", (2, 3))
    assert np.allclose(np.reshape(values, shape), classifier.predict_proba(ROWS), atol=1e-5)


@pytest.mark.parametrize(
    ("framework", "inputs", "outputs"),
    [
        ("sklearn", [("input-0", "FP64", [-1, 4])], [("output-0", "INT64", [-1])]),
        ("xgboost", [("input-0", "FP32", [-1, 4])], [("output-0", "FP32", [-1, 3])]),
        ("lightgbm", [("input-0", "FP64", [-1, 4])], [("output-0", "FP64", [-1, 3])]),
        ("onnx", [("X", "FP32", [-1, 4])], [("label", "INT64", [-1]), ("probabilities", "FP32", [-1, 3])]),
    ],
)
async def test_metadata_is_that_of_the_model(
    framework: str, inputs: list[Any], outputs: list[Any], write_file: Write, model_files: Path
) -> None:
    """Its file says the inputs; the outputs are those of the warm-up request."""
    facts = (await loaded(write_file, model_files / framework, framework)).describe()

    assert facts["framework"] == framework
    for key, expected in (("inputs", inputs), ("outputs", outputs)):
        assert facts[key] == [{"name": n, "datatype": d, "shape": s} for n, d, s in expected]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    "body",
    [
        {"instances": [[5.1, 3.5, 1.4]]},
        {"instances": [["tall", 3.5, 1.4, 0.2]]},
        {"instances": [[1, 2, 3, 4], [5]]},
        {"instances": [5.1, 3.5, 1.4, 0.2]},
        {"instances": [[[5.1, 3.5, 1.4, 0.2]]]},
        {"instances": [{"a": 1}, {"b": 2}]},
        {"instances": [{"a": 1, "b": 2}]},
        {"instances": []},
        {"instances": 3},
        {"inputs": {}},
        {},
        {"instances": ROWS, "parameters": 3},
        {"instances": ROWS, "parameters": {"predict_proba": "yes"}},
    ],
    ids=str,
)
async def test_a_clients_mistake_is_a_400(framework: str, body: Any, write_file: Write, model_files: Path) -> None:
    """Wrong columns, types, shapes and parameters are the request's fault, with the reason."""
    model = await loaded(write_file, model_files / framework, framework)

    with pytest.raises(RequestError) as caught:
        await predict(model, body)

    assert caught.value.status == 400


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


async def test_named_columns_come_in_any_order(write_file: Write, shop: Path) -> None:
    """As rows of objects, as columns of a data frame, as a tensor for each column; outputs may be texts."""
    model = await loaded(write_file, shop, "sklearn", warmup={"instances": [{"colour": "red", "size": 1}]})
    tensors = (
        {"name": "size", "datatype": "FP64", "shape": [2], "data": [1, 4]},
        {"name": "colour", "datatype": "BYTES", "shape": [2], "data": ["red", "blue"]},
    )

    assert await predict(model, {"instances": [{"size": 1, "colour": "red"}, {"size": 4, "colour": "blue"}]}) == [
        "buy",
        "leave",
    ]
    assert await predict(model, {"inputs": [{"colour": {"0": "red", "1": "blue"}, "size": {"0": 1, "1": 4}}]}) == [
        "buy",
        "leave",
    ]
    assert await predict(model, {"instances": [["red", 1]]}) == ["buy"]
    assert await infer(model, *tensors, parameters={"content_type": "pd"}) == {
        "output-0": ("BYTES", (2,), [b"buy", b"leave"])
    }
    with pytest.raises(RequestError, match="has no size and has weight; the columns of the model are colour, size"):
        await predict(model, {"instances": [{"colour": "red", "weight": 1}]})


async def test_texts_are_rows_too(write_file: Write, words: Path) -> None:
    """A pipeline over texts is warmed up with one."""
    model = await loaded(write_file, words, "sklearn")
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["fine", "awful"]}

    assert model.warmup_request is not None
    assert await predict(model, {"instances": ["fine", "awful"]}) == ["up", "down"]
    assert (await infer(model, tensor))["output-0"] == ("BYTES", (2,), [b"up", b"down"])


async def test_a_warm_up_request_of_the_config_is_held_to(write_file: Write, shop: Path) -> None:
    """One that the model cannot compute keeps it from becoming ready; without one, a model of unknown columns is."""
    with pytest.raises(LoadError, match=r"engine.warmup cannot be computed: .*green"):
        await loaded(write_file, shop, "sklearn", warmup={"instances": [{"colour": "green", "size": 1}]})

    assert (await loaded(write_file, shop, "sklearn")).warmup_request is None


async def test_requests_are_computed_side_by_side(write_file: Write, model_files: Path) -> None:
    """Many at once give each its own answer, off the event loop."""
    model = await loaded(write_file, model_files / "onnx", "onnx")

    answers = await asyncio.gather(*(predict(model, {"instances": [ROWS[number % 2]]}) for number in range(40)))

    assert [each[0]["label"] for each in answers] == [0, 2] * 20


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
