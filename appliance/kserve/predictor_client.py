"""The predictor behind a transformer, over REST or gRPC."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from appliance.core.errors import GatewayError, GatewayTimeoutError, RequestError
from appliance.kserve.constants.constants import PredictorProtocol
from appliance.kserve.grpc_client import InferenceGRPCClient, rpc_errors
from appliance.kserve.inference_client import InferenceRESTClient, RESTConfig, error_text
from appliance.kserve.predictor_config import PredictorConfig
from appliance.python_api.base_model import NotReadyError
from appliance.python_api.infer_types import InferRequest, InferResponse
from appliance.python_api.tensor_model import Payload
from appliance.tensors.grpc import inference_pb2 as pb

# Headers of a request that the predictor gets, too.
_FORWARDED = frozenset({"authorization", "traceparent", "tracestate", "x-b3-traceid", "x-request-id"})

_HEALTH_SECONDS = 10

# A predictor that was ready is asked again after this time.
_READY_SECONDS = 5


class PredictorClient(ABC):
    """Sends the requests of a transformer to its predictor."""

    def __init__(self, config: PredictorConfig) -> None:
        self._host = config.predictor_host
        self._ready_until = 0.0

    @abstractmethod
    async def infer(
        self, payload: Payload, model_name: str, headers: Mapping[str, str], response_headers: dict[str, str]
    ) -> Any:  # Any: a JSON object, or an `InferResponse`
        """Return the predictor's response, and add its headers to `response_headers`.

        Raises:
            RequestError: it answers with an error, whose status and text this has.
        """

    async def require_ready(self, model_name: str) -> None:
        """Return if the predictor's model is ready.

        Raises:
            NotReadyError: it is not.
        """
        # Health is asked for twice a second, and each request is an event in the predictor's log.
        if time.monotonic() < self._ready_until:
            return
        try:
            is_ready, reason = await self._is_ready(model_name), "it says so"
        except RequestError as error:
            is_ready, reason = False, error.detail if isinstance(error, GatewayError) else str(error)
        if not is_ready:
            raise NotReadyError(f"its predictor is not ready, because of {self._host}: {reason}")
        self._ready_until = time.monotonic() + _READY_SECONDS

    @abstractmethod
    async def close(self) -> None:
        """Close all connections."""

    @abstractmethod
    async def _is_ready(self, model_name: str) -> bool: ...


def create_client(config: PredictorConfig) -> PredictorClient:
    """Return the client for the predictor's protocol; as in KServe, a variable may name a file of authorities."""
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    is_grpc = config.protocol == PredictorProtocol.GRPC_V2.value
    return _GrpcClient(config, bundle) if is_grpc else _RestClient(config, bundle)


class _RestClient(PredictorClient):
    def __init__(self, config: PredictorConfig, bundle: str | None) -> None:
        super().__init__(config)
        rest = RESTConfig(
            protocol=config.protocol, retries=config.retries, timeout=config.timeout, verify=bundle or True
        )
        self._client, self._url = InferenceRESTClient(rest), config.predictor_base_url

    async def infer(
        self, payload: Payload, model_name: str, headers: Mapping[str, str], response_headers: dict[str, str]
    ) -> Any:
        with _http_errors():
            return await self._client.infer(self._url, payload, model_name, _forwarded(headers), response_headers)

    async def _is_ready(self, model_name: str) -> bool:
        with _http_errors():
            return await self._client.is_model_ready(self._url, model_name, timeout=_HEALTH_SECONDS)

    async def close(self) -> None:
        await self._client.close()


class _GrpcClient(PredictorClient):
    def __init__(self, config: PredictorConfig, bundle: str | None) -> None:
        super().__init__(config)
        self._client = InferenceGRPCClient(
            config.predictor_host or "",
            use_ssl=config.use_ssl,
            root_certificates=bundle,
            timeout=config.timeout,
            retries=config.retries,
        )

    async def infer(
        self,
        payload: Any,
        model_name: str,  # noqa: ARG002 - a request has the name of its model
        headers: Mapping[str, str],
        response_headers: dict[str, str],  # noqa: ARG002 - as in KServe, metadata is not returned
    ) -> InferResponse:
        request = InferRequest.from_grpc(payload) if isinstance(payload, pb.ModelInferRequest) else payload
        with rpc_errors():
            return await self._client.infer(request, headers=tuple(_forwarded(headers).items()))

    async def _is_ready(self, model_name: str) -> bool:
        with rpc_errors():
            return await self._client.is_model_ready(model_name, timeout=_HEALTH_SECONDS)

    async def close(self) -> None:
        await self._client.close()


def _forwarded(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items() if name.lower() in _FORWARDED}


@contextmanager
def _http_errors() -> Iterator[None]:
    """Turn the error of a predictor into the one of the request that needed it."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        raise RequestError(error_text(error.response), status=error.response.status_code) from error
    except httpx.TimeoutException as error:
        raise GatewayTimeoutError("The predictor did not answer in time", detail=repr(error)) from error
    except httpx.HTTPError as error:
        raise GatewayError("The predictor gave no response", detail=repr(error)) from error
