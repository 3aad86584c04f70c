"""KServe's class of models."""

from __future__ import annotations

from appliance.kserve.constants.constants import PredictorProtocol
from appliance.kserve.predictor_config import PredictorConfig
from appliance.python_api import tensor_model

__all__ = ["Model", "PredictorProtocol"]


class Model(tensor_model.Model):
    """A model or a transformer; `ModelServer` sets its `predictor_config`."""

    predictor_config: PredictorConfig | None = None
