"""KServe's class of models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from appliance.core.http import HOP_BY_HOP_HEADERS
from appliance.kserve.constants.constants import PredictorProtocol
from appliance.kserve.errors import UnsupportedProtocol
from appliance.kserve.inference_client import InferenceRESTClient, RESTConfig
from appliance.kserve.predictor_config import PredictorConfig
from appliance.python_api import tensor_model
from appliance.python_api.tensor_model import Payload

__all__ = ["Model", "PredictorProtocol"]

# Headers of a request that the predictor gets, too.
_FORWARDED = frozenset({"authorization", "traceparent", "tracestate", "x-b3-traceid", "x-request-id"})


class Model(tensor_model.Model):
    """A model or a transformer; `ModelServer` sets its `predictor_config`."""

    predictor_config: PredictorConfig | None = None
    _client: InferenceRESTClient | None = None

    async def predict(
        self,
        payload: Payload,
        headers: Mapping[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
        **_: Any,
    ) -> Any:
        """Return the response of the predictor, if there is one.

        Raises:
            RequestError: it answers with an error, whose status and text this has.
            NotImplementedError: there is no predictor.
        """
        config = self.predictor_config
        if config is None or not config.predictor_host:
            raise NotImplementedError("predict is not overridden, and there is no --predictor_host")
        if config.protocol == PredictorProtocol.GRPC_V2.value:
            raise UnsupportedProtocol(config.protocol)
        if self._client is None:
            bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
            self._client = InferenceRESTClient(
                RESTConfig(config.protocol, config.retries, config.timeout, bundle or True)
            )
        forwarded = {name.lower(): value for name, value in (headers or {}).items() if name.lower() in _FORWARDED}
        received: dict[str, str] = {}
        response = await self._client.infer(config.predictor_base_url, payload, self.name, forwarded, received)
        if response_headers is not None:
            response_headers.update({k: v for k, v in received.items() if k not in HOP_BY_HOP_HEADERS})
        return response
