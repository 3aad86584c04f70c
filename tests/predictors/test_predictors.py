"""Predictors: what each framework answers, as clients of both versions of the protocol see it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from predictors.conftest import ROWS
from skl2onnx import to_onnx
from skl2onnx.common.data_types import Int64TensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from appliance.config import load
from appliance.core.errors import LoadError, RequestError
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


async def test_onnx_columns_have_the_types_of_the_file(write_file: Write, tmp_path: Path) -> None:
    """Each may be a list of values, though converters give it a second axis; others of its kind are no loss."""
    frame = pd.DataFrame({"colour": ["red", "blue"] * 2, "size": [1, 2, 3, 4]})
    encoder = ColumnTransformer([("colour", OneHotEncoder(handle_unknown="ignore"), ["colour"])])
    types = [("colour", StringTensorType([None, 1])), ("size", Int64TensorType([None, 1]))]
    pipeline = make_pipeline(encoder, LogisticRegression()).fit(frame, ["buy", "leave"] * 2)
    file = tmp_path / "model.onnx"
    file.write_bytes(to_onnx(pipeline, initial_types=types, options={"zipmap": False}).SerializeToString())
    model = await loaded(write_file, file, "onnx")

    for body in (
        {"instances": [{"colour": "red", "size": 1}, {"colour": "blue", "size": 2}]},
        {"inputs": {"colour": ["red", "blue"], "size": [1, 2]}},
        {"inputs": {"colour": [["red"], ["blue"]], "size": [[1], [2]]}},
    ):
        assert [each["label"] for each in await predict(model, body)] == ["buy", "leave"]
    for row, message in (
        ({"colour": "red", "size": 1.5}, "The input 'size' is FP64; the model needs INT64"),
        ({"colour": 1, "size": 1}, "The input 'colour' is INT64; the model needs BYTES"),
        ({"colour": "red"}, "The model needs the input 'size'; the inputs here are colour, size"),
    ):
        with pytest.raises(RequestError, match=message):
            await predict(model, {"instances": [row]})


async def test_several_outputs_are_several_tensors(write_file: Write, tmp_path: Path, iris: tuple[Any, Any]) -> None:
    """A model that predicts two things for a row has two columns, and the probabilities of each."""
    features, classes = iris
    estimator = MultiOutputClassifier(LogisticRegression(max_iter=1000))
    joblib.dump(estimator.fit(features, np.c_[classes, classes > 0]), tmp_path / "model.joblib")
    model = await loaded(write_file, tmp_path, "sklearn")
    outputs = await infer(model, rows(), parameters={"predict_proba": True})

    assert await predict(model, {"instances": ROWS}) == [[0, 0], [2, 1]]
    assert {name: output[1] for name, output in outputs.items()} == {"output-0": (2, 3), "output-1": (2, 2)}


async def test_a_regression_has_no_probabilities(write_file: Write, tmp_path: Path) -> None:
    """The request is a 400, and a config that asks for them is not served."""
    joblib.dump(LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0]), tmp_path / "model.joblib")
    model = await loaded(write_file, tmp_path, "sklearn")

    assert await predict(model, {"instances": [[2.0]]}) == pytest.approx([4.0])
    with pytest.raises(RequestError, match="The model has no probabilities"):
        await predict(model, {"instances": [[2.0]], "parameters": {"predict_proba": True}})
    with pytest.raises(LoadError, match=r"engine.predict_proba: a LinearRegression has no probabilities"):
        await loaded(write_file, tmp_path, "sklearn", predict_proba=True)


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
        {"instances": [[{"a": 1}], 3]},
        {"instances": [{}]},
    ],
    ids=str,
)
async def test_a_clients_mistake_is_a_400(framework: str, body: Any, write_file: Write, model_files: Path) -> None:
    """Wrong columns, types, shapes and parameters are the request's fault, with the reason."""
    model = await loaded(write_file, model_files / framework, framework)

    with pytest.raises(RequestError) as caught:
        await predict(model, body)

    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("framework", "text"),
    [
        (
            "sklearn",
            "The model 'iris' cannot compute these inputs: X has 3 features, but LogisticRegression is expecting",
        ),
        ("xgboost", "The rows are of shape [1, 3]; the model needs rows of 4 columns"),
        ("lightgbm", "The rows are of shape [1, 3]; the model needs rows of 4 columns"),
    ],
)
async def test_a_wrong_number_of_columns_is_told(
    write_file: Write, model_files: Path, framework: str, text: str
) -> None:
    """As the guide quotes it."""
    model = await loaded(write_file, model_files / framework, framework)

    with pytest.raises(RequestError, match=re.escape(text)):
        await predict(model, {"instances": [[1, 2, 3]]})


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


async def test_columns_may_be_lists(write_file: Write, shop: Path) -> None:
    """KServe makes a data frame of such an object."""
    model = await loaded(write_file, shop, "sklearn")

    assert await predict(model, {"instances": [{"colour": ["red", "blue"], "size": [1, 4]}]}) == ["buy", "leave"]


async def test_texts_are_rows_too(write_file: Write, words: Path) -> None:
    """A pipeline over texts is warmed up with one; a column of them is as good, and other values are a 400."""
    model = await loaded(write_file, words, "sklearn")
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["fine", "awful"]}

    assert model.warmup_request is not None
    assert await predict(model, {"instances": ["fine", "awful"]}) == ["up", "down"]
    assert (await infer(model, tensor))["output-0"] == ("BYTES", (2,), [b"up", b"down"])
    assert (await infer(model, tensor | {"shape": [2, 1]}))["output-0"] == ("BYTES", (2,), [b"up", b"down"])
    for rows_ in ([3], ["fine", None], [["fine", "awful"]]):
        with pytest.raises(RequestError, match="The model 'iris' cannot compute these inputs"):
            await predict(model, {"instances": rows_})


async def test_a_warm_up_request_of_the_config_is_held_to(write_file: Write, shop: Path) -> None:
    """One that the model cannot compute keeps it from becoming ready; without one, a model of unknown columns is."""
    with pytest.raises(LoadError, match=r"engine.warmup cannot be computed: .*green"):
        await loaded(write_file, shop, "sklearn", warmup={"instances": [{"colour": "green", "size": 1}]})

    assert (await loaded(write_file, shop, "sklearn")).warmup_request is None


async def test_a_warm_up_request_says_the_types_of_columns(write_file: Write, shop: Path) -> None:
    """As metadata, in which nothing is promised that the file does not say."""
    warmup = {"instances": [{"colour": "red", "size": 1.5}]}
    named = (await loaded(write_file, shop, "sklearn", warmup=warmup)).describe()
    mixed = (await loaded(write_file, shop, "sklearn", warmup={"instances": [["red", 1.5]]})).describe()

    assert [(each["name"], each["datatype"], each["shape"]) for each in named["inputs"]] == [
        ("colour", "BYTES", [-1]),
        ("size", "FP64", [-1]),
    ]
    assert mixed["inputs"] == []
    assert named["outputs"] == mixed["outputs"] == [{"name": "output-0", "datatype": "BYTES", "shape": [-1]}]


@pytest.mark.parametrize("framework", ["xgboost", "lightgbm"])
async def test_null_is_a_missing_number(framework: str, write_file: Write, model_files: Path) -> None:
    """In both versions, as in KServe; a model without a place for it answers 400."""
    model = await loaded(write_file, model_files / framework, framework)
    estimator = await loaded(write_file, model_files / "sklearn", "sklearn")
    row = [None, 3.5, 1.4, 0.2]
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": row}
    (output,) = (await infer(model, tensor)).values()

    assert np.allclose(await predict(model, {"instances": [row]}), np.reshape(output[2], output[1]))
    with pytest.raises(RequestError, match="contains NaN"):
        await infer(estimator, tensor)


async def test_a_misspelt_parameter_is_a_400(write_file: Write, model_files: Path) -> None:
    """Parameters of others pass, as the protocol has them."""
    model = await loaded(write_file, model_files / "sklearn", "sklearn")

    assert await infer(model, rows(), parameters={"tenant": "x"}) == {"output-0": ("INT64", (2,), [0, 2])}
    with pytest.raises(RequestError, match=r'no parameter \'predict_probas\'; did you mean "predict_proba"\?'):
        await infer(model, rows(), parameters={"predict_probas": True})
    with pytest.raises(RequestError, match="predict_proba is not for onnx"):
        await infer(await loaded(write_file, model_files / "onnx", "onnx"), rows(), parameters={"predict_proba": True})


async def test_requests_are_computed_side_by_side(write_file: Write, model_files: Path) -> None:
    """Many at once give each its own answer, off the event loop."""
    model = await loaded(write_file, model_files / "onnx", "onnx")

    answers = await asyncio.gather(*(predict(model, {"instances": [ROWS[number % 2]]}) for number in range(40)))

    assert [each[0]["label"] for each in answers] == [0, 2] * 20
