"""scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import joblib
import numpy as np
import sklearn  # noqa: F401 - what is loaded needs it; its absence is an error of this module

from appliance.config.engine import SklearnConfig
from appliance.core.errors import LoadError, RequestError
from appliance.engines.frameworks.features import Array, Features, columns, matrix, ordered, require_columns
from appliance.engines.frameworks.framework import INPUT, OUTPUT, Framework, describe
from appliance.tensors.tensor import TensorSpec


class Sklearn(Framework):
    """An estimator or a pipeline."""

    # A number has none of the methods of the text that a model needs.
    input_errors = (*Framework.input_errors, AttributeError, ArithmeticError)
    has_probabilities: ClassVar[bool] = True
    knows_types: ClassVar[bool] = False

    def __init__(self, config: SklearnConfig, file: Path) -> None:
        # A pickle, which the config allows: a validator requires `allow_pickle`.
        self._model: Any = joblib.load(file)
        if not callable(getattr(self._model, "predict", None)):
            raise LoadError(
                f"{file}: is a {type(self._model).__name__}, which has no method predict; save the estimator"
            )
        self._has_probabilities = config.predict_proba
        if config.predict_proba and not hasattr(self._model, "predict_proba"):
            raise LoadError(
                f"engine.predict_proba: a {type(self._model).__name__} has no probabilities; set it to false"
            )
        self.columns = list(map(str, getattr(self._model, "feature_names_in_", ())))
        count = getattr(self._model, "n_features_in_", None)
        # Without a number of features it is a pipeline that begins with texts.
        self._needs_texts = count is None
        self.inputs = [TensorSpec(INPUT, "BYTES", (-1,)) if count is None else TensorSpec(INPUT, "FP64", (-1, count))]

    def known_inputs(self, proof: Features | None) -> Sequence[TensorSpec]:
        if isinstance(proof, Mapping):
            return describe(proof)
        # Rows with texts and numbers fit no tensor.
        has_known_type = proof is not None and self._needs_texts == (proof.dtype.kind == "O")
        return self.inputs if has_known_type else ()

    def predict(self, features: Features, *, has_probabilities: bool | None = None) -> Mapping[str, Array]:
        if has_probabilities is None:
            has_probabilities = self._has_probabilities
        if has_probabilities and not hasattr(self._model, "predict_proba"):
            raise RequestError("The model has no probabilities; leave out predict_proba", param="predict_proba")
        method = self._model.predict_proba if has_probabilities else self._model.predict
        result = method(self._table(features))
        if isinstance(result, list):
            # Probabilities of several outputs.
            return {f"output-{number}": np.asarray(each) for number, each in enumerate(result)}
        return {OUTPUT: np.asarray(result)}

    def _table(self, features: Features) -> Any:  # Any: an array or a data frame
        """Return the features as the model was trained with them: with the names of columns, or without."""
        if not self.columns:
            rows = matrix(features)
            # Some clients send a text for each row as a column.
            return rows.reshape(-1) if rows.shape[1:] == (1,) and self._needs_texts else rows
        import pandas as pd

        found = columns(features)
        if isinstance(found, Mapping):
            return pd.DataFrame(ordered(found, self.columns))
        require_columns(found, len(self.columns), self.columns)
        return pd.DataFrame(found, columns=self.columns)
