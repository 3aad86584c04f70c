"""LightGBM."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

import lightgbm
import numpy as np
from lightgbm.basic import LightGBMError

from appliance.config.engine import LightgbmConfig
from appliance.core.child_process import run
from appliance.core.errors import LoadError
from appliance.engines.frameworks.features import Array, Features, matrix, require_columns
from appliance.engines.frameworks.framework import INPUT, OUTPUT, Framework
from appliance.tensors.tensor import TensorSpec

_TRIAL_SECONDS = 600


class Lightgbm(Framework):
    """A booster; classifiers predict what their objective gives, usually probabilities."""

    input_errors = (*Framework.input_errors, LightGBMError)

    def __init__(self, config: LightgbmConfig, file: Path) -> None:
        self._threads = config.threads
        _try(file)
        self._booster = lightgbm.Booster(model_file=file)
        names = self._booster.feature_name()
        # What the library calls columns without names.
        self.columns = [] if names == [f"Column_{number}" for number in range(len(names))] else names
        self.inputs = [TensorSpec(INPUT, "FP64", (-1, self._booster.num_feature()))]

    def predict(self, features: Features, *, has_probabilities: bool | None = None) -> Mapping[str, Array]:  # noqa: ARG002 - it has none
        rows = matrix(features, self.columns)
        require_columns(rows, self._booster.num_feature(), self.columns)
        return {OUTPUT: np.asarray(self._booster.predict(rows, num_threads=self._threads))}


def _try(file: Path) -> None:
    """Load the model in a child process, because many damaged files make the library end its process or hang.

    Raises:
        LoadError: the child crashed or hung; an error of the library is left to the next load.
    """
    deadline = time.monotonic() + _TRIAL_SECONDS

    def check_time(_: str) -> None:
        if time.monotonic() > deadline:
            raise LoadError(f"{file}: lightgbm has not loaded it after {_TRIAL_SECONDS} seconds; the file is damaged")

    trial = Path(__file__).with_name("lightgbm_trial.py")
    command = [sys.executable, "-I", "-S", str(trial), lightgbm.basic._LIB._name, str(file)]
    if (status := run(command, {}, check_time).status) < 0:
        raise LoadError(
            f"{file}: lightgbm crashes on it (signal {-status}); the file is damaged, or no model of LightGBM"
        )
