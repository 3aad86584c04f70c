"""LightGBM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import lightgbm
import numpy as np
from lightgbm.basic import LightGBMError

from appliance.config.engine import LightgbmConfig
from appliance.engines.frameworks.features import Array, Features, matrix, require_columns
from appliance.engines.frameworks.framework import INPUT, OUTPUT, Framework
from appliance.tensors.tensor import TensorSpec


class Lightgbm(Framework):
    """A booster; classifiers predict what their objective gives, usually probabilities."""

    input_errors = (*Framework.input_errors, LightGBMError)

    def __init__(self, config: LightgbmConfig, file: Path) -> None:
        self._threads = config.threads
        self._booster = lightgbm.Booster(model_file=file)
        names = self._booster.feature_name()
        # What the library calls columns without names.
        self.columns = [] if names == [f"Column_{number}" for number in range(len(names))] else names
        self.inputs = [TensorSpec(INPUT, "FP64", (-1, self._booster.num_feature()))]

    def predict(self, features: Features, *, has_probabilities: bool | None = None) -> Mapping[str, Array]:  # noqa: ARG002 - it has none
        rows = matrix(features, self.columns)
        require_columns(rows, self._booster.num_feature(), self.columns)
        return {OUTPUT: np.asarray(self._booster.predict(rows, num_threads=self._threads))}
