"""KServe's ModelServer with classic models, as its sklearnserver, xgbserver and lgbserver have them.

``python kserve_predictors.py HTTP_PORT GRPC_PORT NAME=FRAMEWORK=FILE...``

These servers are in no package registry: they are images. What they add to the package `kserve` is one method each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HTTP, GRPC = int(sys.argv[1]), int(sys.argv[2])
MODELS = [word.split("=", 2) for word in sys.argv[3:]]
# KServe reads the command line while it is imported.
sys.argv[1:] = []

import joblib  # noqa: E402
import lightgbm  # noqa: E402
import xgboost  # noqa: E402
from kserve import Model, ModelServer  # noqa: E402
from kserve.utils.utils import get_predict_input, get_predict_response  # noqa: E402

Predict = Callable[[Any], Any]


def load(framework: str, file: str) -> tuple[Predict, list[str] | None]:
    """Return what computes rows, and the names of their columns if KServe's server selects these."""
    if framework == "xgboost":
        booster = xgboost.Booster({"nthread": 1}, model_file=bytearray(Path(file).read_bytes()))
        return lambda rows: booster.predict(xgboost.DMatrix(rows, nthread=1)), None
    if framework == "lightgbm":
        booster = lightgbm.Booster({"nthread": 1}, model_file=file)
        return booster.predict, booster.feature_name()
    estimator = joblib.load(file)
    return estimator.predict_proba if framework == "probabilities" else estimator.predict, None


class Predictor(Model):
    """Predicts with what KServe makes of a request."""

    def __init__(self, name, framework, file):
        super().__init__(name)
        self.predict_rows, self.columns = load(framework, file)
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        """In either version of the protocol."""
        rows = get_predict_input(payload, columns=self.columns)
        return get_predict_response(payload, self.predict_rows(rows), self.name)


models = [Predictor(*words) for words in MODELS]
ModelServer(http_port=HTTP, grpc_port=GRPC, workers=1, enable_grpc=True).start(models)
