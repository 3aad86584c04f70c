"""The same requests to the appliance and to KServe's ModelServer, both with the same models."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import lightgbm
import pandas as pd
import pytest
import xgboost
from predictors.conftest import ROWS
from reference_servers import Reference, kserve_environment, serving

PROGRAM = Path(__file__).parents[1] / "oip/programs/kserve_predictors.py"


def _tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


_FLAT = [value for row in ROWS for value in row]
_COLUMNS = [_tensor("colour", "BYTES", [2], ["red", "blue"]), _tensor("size", "FP64", [2], [1.0, 4.0])]
_FRAME = {"colour": {"0": "red", "1": "blue"}, "size": {"0": 1.0, "1": 4.0}}

CASES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "instances": ("/v1/models/iris:predict", {"instances": ROWS}),
    "inputs": ("/v1/models/iris:predict", {"inputs": ROWS}),
    "whole numbers": ("/v1/models/iris:predict", {"instances": [[5, 3, 1, 0]]}),
    "probabilities": ("/v1/models/iris-probabilities:predict", {"instances": ROWS}),
    "frame": ("/v1/models/shop:predict", {"inputs": [_FRAME]}),
    "rows by name": (
        "/v1/models/shop:predict",
        {"instances": [[{"colour": "red", "size": 1.0}, {"colour": "blue", "size": 4.0}]]},
    ),
    "texts": ("/v1/models/words:predict", {"instances": ["fine", "awful"]}),
    "FP64": ("/v2/models/iris/infer", {"id": "7", "inputs": [_tensor("input-0", "FP64", [2, 4], _FLAT)]}),
    "FP32 of any name": ("/v2/models/iris/infer", {"id": "7", "inputs": [_tensor("x", "FP32", [2, 4], _FLAT)]}),
    "nested": ("/v2/models/iris/infer", {"id": "7", "inputs": [_tensor("x", "FP32", [2, 4], ROWS)]}),
    "INT64": ("/v2/models/iris/infer", {"id": "7", "inputs": [_tensor("x", "INT64", [1, 4], [5, 3, 1, 0])]}),
    "probabilities of tensors": (
        "/v2/models/iris-probabilities/infer",
        {"id": "7", "inputs": [_tensor("x", "FP64", [2, 4], _FLAT)]},
    ),
    "columns": (
        "/v2/models/shop-probabilities/infer",
        {"id": "7", "parameters": {"content_type": "pd"}, "inputs": _COLUMNS},
    ),
    "BYTES": (
        "/v2/models/words-probabilities/infer",
        {"id": "7", "inputs": [_tensor("x", "BYTES", [2], ["fine", "awful"])]},
    ),
    **{
        f"{kind} of {framework}": (f"/{version}/models/{framework}{name}{verb}", body)
        for framework in ("xgboost", "lightgbm")
        for kind, version, name, verb, body in (
            ("instances", "v1", "", ":predict", {"instances": ROWS}),
            ("whole numbers", "v1", "", ":predict", {"instances": [[5, 3, 1, 0]]}),
            ("FP32", "v2", "", "/infer", {"id": "7", "inputs": [_tensor("x", "FP32", [2, 4], _FLAT)]}),
            ("FP64", "v2", "", "/infer", {"id": "7", "inputs": [_tensor("x", "FP64", [2, 4], _FLAT)]}),
            ("null", "v2", "", "/infer", {"id": "7", "inputs": [_tensor("x", "FP32", [1, 4], [None, 3, 1, 0])]}),
            ("rows by name", "v1", "-names", ":predict", {"instances": [[{"a": 5.1, "b": 0.2}, {"a": 6, "b": 2}]]}),
            ("lists by name", "v1", "-names", ":predict", {"instances": [{"a": [5.1, 6], "b": [0.2, 2]}]}),
            (
                *("columns", "v2", "-names", "/infer"),
                {
                    "id": "7",
                    "parameters": {"content_type": "pd"},
                    "inputs": [_tensor("a", "FP64", [2], [5.1, 6]), _tensor("b", "FP64", [2], [0.2, 2])],
                },
            ),
        )
    },
}


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory, model_files: Path, shop: Path, words: Path, iris: tuple[Any, Any]
) -> Mapping[str, tuple[str, Path]]:
    """Framework and file of each model by its name; its framework is `probabilities` where they are asked for."""
    folder = tmp_path_factory.mktemp("named")
    frame, classes = pd.DataFrame(iris[0][:, [0, 3]], columns=["a", "b"]), iris[1] > 0
    settings = {"objective": "binary", "verbose": -1, "num_threads": 1}
    xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(frame, classes), 3).save_model(folder / "a.ubj")
    lightgbm.train(settings, lightgbm.Dataset(frame, classes), 3).save_model(folder / "a.bst")
    estimators = {"iris": model_files / "sklearn/model.joblib", "shop": shop, "words": words}
    return {
        **{name: ("sklearn", file) for name, file in estimators.items()},
        **{f"{name}-probabilities": ("probabilities", file) for name, file in estimators.items()},
        "xgboost": ("xgboost", model_files / "xgboost/model.json"),
        "xgboost-names": ("xgboost", folder / "a.ubj"),
        "lightgbm": ("lightgbm", model_files / "lightgbm/model.txt"),
        "lightgbm-names": ("lightgbm", folder / "a.bst"),
    }


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, models: Mapping[str, tuple[str, Path]]) -> Iterator[Reference]:
    """The appliance."""
    folder = tmp_path_factory.mktemp("ours")
    probabilities = {"framework": "sklearn", "predict_proba": True}
    config = [
        {
            "name": name,
            "class": "predictor",
            "storage": {"uri": str(file), "allow_pickle": framework in {"sklearn", "probabilities"}},
            "engine": probabilities if framework == "probabilities" else {"framework": framework},
        }
        for name, (framework, file) in models.items()
    ]
    path = folder / "config.yaml"
    path.write_text(json.dumps({"models": config}))
    command: list[str | Path] = [sys.executable, "-m", "appliance", "serve", path, "--set", "server.port={http}"]
    with serving(folder / "log", command, "/readyz") as server:
        yield server


@pytest.fixture(scope="module")
def kserve(
    pytestconfig: pytest.Config,
    tmp_path_factory: pytest.TempPathFactory,
    models: Mapping[str, tuple[str, Path]],
) -> Iterator[Reference]:
    """KServe's ModelServer."""
    python = kserve_environment(pytestconfig)
    words = [f"{name}={framework}={file}" for name, (framework, file) in models.items()]
    command: list[str | Path] = [python, PROGRAM, "{http}", "{grpc}", *words]
    with serving(tmp_path_factory.mktemp("kserve") / "log", command, "/v2/models/iris/ready") as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_predictions_equal_those_of_kserve(name: str, ours: Reference, kserve: Reference) -> None:
    """Values, names, datatypes and shapes; ours has a version of the model, and theirs fields that are null.

    Predictions that are texts are not among the tensors: KServe answers them with 500.
    """
    path, body = CASES[name]
    left, right = (httpx.post(server.url + path, json=body) for server in (ours, kserve))

    assert (left.status_code, right.status_code) == (200, 200), f"{left.text}\n{right.text}"
    assert _essence(left.json()) == _essence(right.json())


def _essence(answer: dict[str, Any]) -> Any:
    if "predictions" in answer:
        return answer
    keys = ("name", "datatype", "shape", "data")
    return answer["id"], answer["model_name"], [{key: each[key] for key in keys} for each in answer["outputs"]]
