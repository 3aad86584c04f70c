"""Small models of each framework, trained here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from skl2onnx import to_onnx
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

ROWS = [[5.1, 3.5, 1.4, 0.2], [6.9, 3.1, 5.4, 2.1]]
"""Two flowers: of the first class, and of the last."""


@pytest.fixture(scope="session")
def iris() -> tuple[Any, Any]:
    """Measures of flowers, and the class of each."""
    features, classes = load_iris(return_X_y=True)
    return features, classes


@pytest.fixture(scope="session")
def classifier(iris: tuple[Any, Any]) -> LogisticRegression:
    """A classifier of scikit-learn."""
    return LogisticRegression(max_iter=1000).fit(*iris)


@pytest.fixture(scope="session")
def boosters(iris: tuple[Any, Any]) -> tuple[Any, Any]:
    """Boosters of XGBoost and of LightGBM."""
    features, classes = iris
    xgb = xgboost.train({"objective": "multi:softprob", "num_class": 3}, xgboost.DMatrix(features, classes), 3)
    settings = {"objective": "multiclass", "num_class": 3, "verbose": -1, "num_threads": 1}
    return xgb, lightgbm.train(settings, lightgbm.Dataset(features, classes), 3)


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory, classifier: Any, boosters: tuple[Any, Any]) -> Path:
    """A directory with a directory for each framework, and its model in it."""
    root = tmp_path_factory.mktemp("frameworks")
    for name in ("sklearn", "onnx", "xgboost", "lightgbm"):
        (root / name).mkdir()
    joblib.dump(classifier, root / "sklearn/model.joblib")
    example = np.array(ROWS[:1], np.float32)
    plain = to_onnx(classifier, example, options={"zipmap": False})
    (root / "onnx/model.onnx").write_bytes(plain.SerializeToString())
    (root / "mapped.onnx").write_bytes(to_onnx(classifier, example).SerializeToString())
    xgb, lgb = boosters
    xgb.save_model(root / "xgboost/model.json")
    lgb.save_model(root / "lightgbm/model.txt")
    return root


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline over columns with names, of which one has texts."""
    frame = pd.DataFrame({"colour": ["red", "blue", "red", "blue"], "size": [1.0, 2.0, 3.0, 4.0]})
    encoder = ColumnTransformer([("colour", OneHotEncoder(), ["colour"])], remainder="passthrough")
    pipeline = make_pipeline(encoder, LogisticRegression()).fit(frame, ["buy", "leave", "buy", "leave"])
    file = tmp_path_factory.mktemp("shop") / "model.pkl"
    joblib.dump(pipeline, file)
    return file


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline over texts."""
    pipeline = make_pipeline(CountVectorizer(), MultinomialNB()).fit(["good fine", "bad awful"], ["up", "down"])
    file = tmp_path_factory.mktemp("words") / "model.pickle"
    joblib.dump(pipeline, file)
    return file


@pytest.fixture
def write_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a config with one predictor."""
    import json

    def write(uri: Path | str, engine: dict[str, Any], **storage: Any) -> Path:
        file = tmp_path / "config.yaml"
        model = {"name": "iris", "class": "predictor", "storage": {"uri": str(uri), **storage}, "engine": engine}
        file.write_text(json.dumps({"models": [model]}))
        return file

    return write
