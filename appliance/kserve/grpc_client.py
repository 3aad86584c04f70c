"""KServe's client of the protocol's version 2 over gRPC."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import grpc
import httpx
from google.protobuf.message import Message
from grpc import StatusCode

from appliance.core.errors import GatewayError, RequestError
from appliance.kserve.errors import InvalidInput
from appliance.kserve.logging import trace_logger
from appliance.python_api.infer_types import InferRequest, InferResponse
from appliance.tensors.grpc import inference_pb2 as pb
from appliance.tensors.grpc.inference_pb2_grpc import GRPCInferenceServiceStub

Metadata = grpc.aio.Metadata | Sequence[tuple[str, str]] | None
ChannelOptions = Sequence[tuple[str, Any]]  # Any: values of options

# HTTP statuses of gRPC codes (https://grpc.io/docs/guides/status-codes); others are 502.
_STATUSES: Mapping[StatusCode, int] = {
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.OUT_OF_RANGE: 400,
    StatusCode.UNAUTHENTICATED: 401,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.NOT_FOUND: 404,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.DEADLINE_EXCEEDED: 504,
}

_MAX_ATTEMPTS = 5  # gRPC's limit


class InferenceGRPCClient:
    """Sends requests to models elsewhere; close it, or use it as an asynchronous context manager.

    Every method raises gRPC's own `grpc.aio.AioRpcError`.
    """

    def __init__(
        self,
        url: str,
        verbose: bool = False,  # noqa: FBT001, FBT002, RUF100 - KServe's
        use_ssl: bool = False,  # noqa: FBT001, FBT002, RUF100 - KServe's
        root_certificates: str | None = None,
        private_key: str | None = None,
        certificate_chain: str | None = None,
        creds: grpc.ChannelCredentials | None = None,
        channel_args: ChannelOptions | None = None,
        timeout: float | None = 60,
        retries: int = 3,
    ) -> None:
        """
        `url` is HOST or HOST:PORT, by default port 443 with TLS and 80 without. The certificates are PEM files; `creds`
        replaces them. `retries` are further attempts if the server is not available, at most 4.
        """
        address = url if ":" in url else f"{url}:{443 if use_ssl else 80}"
        options = _options(channel_args, retries)
        if creds is None and use_ssl:
            files = (root_certificates, private_key, certificate_chain)
            creds = grpc.ssl_channel_credentials(*(Path(each).read_bytes() if each else None for each in files))
        self._channel = (
            grpc.aio.insecure_channel(address, options)
            if creds is None
            else grpc.aio.secure_channel(address, creds, options)
        )
        self._stub: Any = GRPCInferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self._timeout, self._is_verbose = timeout, verbose

    async def infer(
        self,
        infer_request: InferRequest,
        timeout: object = httpx.USE_CLIENT_DEFAULT,  # noqa: ASYNC109 - KServe's
        headers: Metadata = None,
    ) -> InferResponse:
        """Return the response of a model.

        Raises:
            InvalidInput: it is no `InferRequest`.
        """
        if not isinstance(infer_request, InferRequest):
            raise InvalidInput(f"The request is a {type(infer_request).__name__}; it must be an InferRequest")
        response: pb.ModelInferResponse = await self._call("ModelInfer", infer_request.to_grpc(), timeout, headers)
        return InferResponse.from_grpc(response)

    async def is_server_ready(
        self,
        timeout: object = httpx.USE_CLIENT_DEFAULT,  # noqa: ASYNC109 - KServe's
        headers: Metadata = None,
    ) -> bool:
        """Return whether the server is ready."""
        return bool((await self._call("ServerReady", pb.ServerReadyRequest(), timeout, headers)).ready)

    async def is_server_live(
        self,
        timeout: object = httpx.USE_CLIENT_DEFAULT,  # noqa: ASYNC109 - KServe's
        headers: Metadata = None,
    ) -> bool:
        """Return whether the server is live."""
        return bool((await self._call("ServerLive", pb.ServerLiveRequest(), timeout, headers)).live)

    async def is_model_ready(
        self,
        model_name: str,
        timeout: object = httpx.USE_CLIENT_DEFAULT,  # noqa: ASYNC109 - KServe's
        headers: Metadata = None,
    ) -> bool:
        """Return whether a model is ready."""
        return bool((await self._call("ModelReady", pb.ModelReadyRequest(name=model_name), timeout, headers)).ready)

    async def close(self) -> None:
        """Close all connections; safe to call twice."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(self, method: str, request: Message, limit: object, headers: Metadata) -> Any:  # Any: its message
        seconds = self._timeout if limit is httpx.USE_CLIENT_DEFAULT else limit
        if self._is_verbose:
            trace_logger.info("%s: %s", method, request)
        pending: Awaitable[Any] = getattr(self._stub, method)(request, timeout=seconds, metadata=headers)
        response = await pending
        if self._is_verbose:
            trace_logger.info("%s answered: %s", method, response)
        return response


@contextmanager
def rpc_errors() -> Iterator[None]:
    """Turn the error of a predictor into the one of the request that needed it."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        code, text = error.code(), error.details() or error.code().name
        if code in _STATUSES:
            raise RequestError(text, status=_STATUSES[code]) from error
        # gRPC's own texts have addresses.
        raise GatewayError("The predictor is not available", detail=f"{code.name}: {text}") from error


def _options(channel_args: ChannelOptions | None, retries: int) -> list[tuple[str, Any]]:
    """Return a channel's options; without `channel_args`, messages have no limit."""
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    options = unlimited if channel_args is None else list(channel_args)
    names = {name for name, _ in options}
    if retries < 1 or ("grpc.enable_retries", 0) in options or "grpc.service_config" in names:
        return options
    policy = {
        "maxAttempts": min(retries + 1, _MAX_ATTEMPTS),
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": [StatusCode.UNAVAILABLE.name],
    }
    config = {"methodConfig": [{"name": [{}], "retryPolicy": policy}]}
    return [*options, ("grpc.enable_retries", 1), ("grpc.service_config", json.dumps(config))]
