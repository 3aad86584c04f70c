"""XGBoost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xgboost
from xgboost.core import XGBoostError

from appliance.config.engine import XgboostConfig
from appliance.engines.frameworks.features import Array, Features, matrix, require_columns
from appliance.engines.frameworks.framework import INPUT, OUTPUT, Framework
from appliance.tensors.tensor import TensorSpec


class Xgboost(Framework):
    """A booster; classifiers predict what their objective gives, usually probabilities."""

    input_errors = (*Framework.input_errors, XGBoostError)

    def __init__(self, config: XgboostConfig, file: Path) -> None:
        self._threads = config.threads
        # As bytes, their format does not depend on the suffix, which says nothing if it is `.bst`.
        self._booster = xgboost.Booster({"nthread": config.threads}, model_file=bytearray(file.read_bytes()))
        self.columns = self._booster.feature_names or ()
        self.inputs = [TensorSpec(INPUT, "FP32", (-1, self._booster.num_features()))]

    def predict(self, features: Features, *, has_probabilities: bool | None = None) -> Mapping[str, Array]:  # noqa: ARG002 - it has none
        names = list(self.columns)
        array = matrix(features, names)
        # Without names, the library takes columns that are missing for missing numbers.
        require_columns(array, self._booster.num_features(), names)
        rows = xgboost.DMatrix(array, nthread=self._threads, feature_names=names or None)
        return {OUTPUT: np.asarray(self._booster.predict(rows))}
