"""The same requests to the appliance and to KServe's ModelServer, both with the same models of scikit-learn."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from predictors.conftest import ROWS
from reference_servers import Reference, environment, serving

PROGRAM = Path(__file__).parents[1] / "oip/programs/kserve_sklearn.py"


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
}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, model_files: Path, shop: Path, words: Path) -> Iterator[Reference]:
    """The appliance."""
    folder = tmp_path_factory.mktemp("ours")
    files = {"iris": model_files / "sklearn/model.joblib", "shop": shop, "words": words}
    models = [
        {
            "name": f"{name}-probabilities" if is_probability else name,
            "class": "predictor",
            "storage": {"uri": str(file), "allow_pickle": True},
            "engine": {"framework": "sklearn", "predict_proba": is_probability},
        }
        for name, file in files.items()
        for is_probability in (False, True)
    ]
    config = folder / "config.yaml"
    config.write_text(json.dumps({"models": models}))
    command: list[str | Path] = [sys.executable, "-m", "appliance", "serve", config, "--set", "server.port={http}"]
    with serving(folder / "log", command, "/readyz") as server:
        yield server


@pytest.fixture(scope="module")
def kserve(
    pytestconfig: pytest.Config,
    tmp_path_factory: pytest.TempPathFactory,
    model_files: Path,
    shop: Path,
    words: Path,
) -> Iterator[Reference]:
    """KServe's ModelServer."""
    same = [f"{name}=={version(name)}" for name in ("scikit-learn", "joblib", "numpy")]
    python = environment(pytestconfig, "kserve-sklearn", "kserve==0.21.0", *same)
    files = [f"iris={model_files / 'sklearn/model.joblib'}", f"shop={shop}", f"words={words}"]
    command: list[str | Path] = [python, PROGRAM, "{http}", "{grpc}", *files]
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
