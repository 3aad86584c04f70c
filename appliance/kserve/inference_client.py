"""KServe's client of the protocol's versions 1 and 2 over REST; `InferenceGRPCClient` is in `kserve.grpc_client`."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any, Self

import httpx
import msgspec

from appliance.core.openai_types import Json
from appliance.kserve.constants.constants import PredictorProtocol
from appliance.kserve.errors import UnsupportedProtocol
from appliance.kserve.logging import trace_logger
from appliance.kserve.utils.utils import is_v1, is_v2
from appliance.python_api.infer_types import InferRequest, InferResponse
from appliance.tensors.codec import LENGTH_HEADER

__all__ = ["USE_CLIENT_DEFAULT", "InferenceGRPCClient", "InferenceRESTClient", "RESTConfig"]  # noqa: F822 - see below

USE_CLIENT_DEFAULT: Any = httpx.USE_CLIENT_DEFAULT  # Any: a timeout of any kind
"""The timeout of the client's config."""

Headers = Mapping[str, str]

_RETRY_SECONDS = 0.1


def __getattr__(name: str) -> Any:
    # Clients of REST need no gRPC.
    if name != "InferenceGRPCClient":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from appliance.kserve.grpc_client import InferenceGRPCClient

    return InferenceGRPCClient


class RESTConfig:
    """How a client sends requests."""

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport | None = None,
        protocol: str | PredictorProtocol = "v1",
        retries: int = 3,
        http2: bool = False,  # noqa: FBT001, FBT002, RUF100 - KServe's
        timeout: Any = 60,  # Any: as httpx takes it
        cert: str | tuple[str, ...] | None = None,
        verify: bool | str | ssl.SSLContext = True,  # noqa: FBT001, FBT002, RUF100 - KServe's
        auth: Any = None,
        verbose: bool = False,  # noqa: FBT001, FBT002, RUF100 - KServe's
    ) -> None:
        """
        `transport`, `http2`, `timeout` and `auth` are httpx's. `retries` are further attempts if no connection can be
        opened. `cert` is a PEM file with a client's certificate and key, or certificate, key and password; `verify` may
        be a PEM file of authorities. `verbose` logs requests and responses whole.
        """
        self.transport = transport
        self.protocol = protocol.value if isinstance(protocol, PredictorProtocol) else protocol
        self.retries = retries
        self.http2 = http2
        self.timeout = timeout
        self.cert = cert
        self.verify = verify
        self.auth = auth
        self.verbose = verbose

    @property
    def ssl_context(self) -> bool | ssl.SSLContext:
        """What certificates are verified and presented with."""
        if isinstance(self.verify, str):
            context = ssl.create_default_context(cafile=self.verify)
        elif isinstance(self.verify, ssl.SSLContext):
            context = self.verify
        elif self.cert is None:
            return self.verify
        else:
            context = httpx.create_ssl_context(verify=self.verify)
        if self.cert is not None:
            context.load_cert_chain(*((self.cert,) if isinstance(self.cert, str) else self.cert))
        return context


class InferenceRESTClient:
    """Sends requests to models elsewhere; close it, or use it as an asynchronous context manager.

    Every method raises httpx's errors, `httpx.HTTPStatusError` for a response that is an error, and
    `UnsupportedProtocol`.
    """

    def __init__(self, config: RESTConfig | None = None) -> None:
        self._config = config = config or RESTConfig()
        self._client = httpx.AsyncClient(
            transport=config.transport,
            http2=config.http2,
            timeout=config.timeout,
            auth=config.auth,
            verify=config.ssl_context,
        )

    async def infer(
        self,
        base_url: str | httpx.URL,
        data: InferRequest | Json | bytes,
        model_name: str | None = None,
        headers: Headers | None = None,
        response_headers: dict[str, str] | None = None,
        is_graph_endpoint: bool = False,  # noqa: FBT001, FBT002, RUF100 - KServe's
        timeout: Any = USE_CLIENT_DEFAULT,  # noqa: ASYNC109 - KServe's
    ) -> InferResponse | Json:
        """Return the response of a model: an object in version 1 and of a graph, tensors in version 2."""
        if is_graph_endpoint:
            path = ""
        elif model_name is None:
            raise ValueError("model_name is None; give the name of the model")
        else:
            path = f"/v1/models/{model_name}:predict" if self._is_v1() else f"/v2/models/{model_name}/infer"
        response = _checked(await self._post(base_url, path, data, headers, timeout))
        if response_headers is not None:
            response_headers.update(response.headers)
        if is_graph_endpoint or self._is_v1():
            return _decode(response)
        return InferResponse.from_bytes(
            response.content, int(response.headers.get(LENGTH_HEADER, len(response.content)))
        )

    async def explain(
        self,
        base_url: str | httpx.URL,
        model_name: str,
        data: Json,
        headers: Headers | None = None,
        timeout: Any = USE_CLIENT_DEFAULT,  # noqa: ASYNC109 - KServe's
    ) -> Json:
        """Return the explanation of a model, in version 1."""
        if not self._is_v1():
            raise UnsupportedProtocol(self._config.protocol)
        return _decode(_checked(await self._post(base_url, f"/v1/models/{model_name}:explain", data, headers, timeout)))

    async def is_server_ready(
        self,
        base_url: str | httpx.URL,
        headers: Headers | None = None,
        timeout: Any = USE_CLIENT_DEFAULT,  # noqa: ASYNC109 - KServe's
    ) -> bool:
        """Return whether the server is ready, in version 2."""
        if self._is_v1():
            raise UnsupportedProtocol(self._config.protocol)
        response = _checked(await self._send("GET", base_url, "/v2/health/ready", headers, timeout))
        return bool(_decode(response).get("ready"))

    async def is_server_live(
        self,
        base_url: str | httpx.URL,
        headers: Headers | None = None,
        timeout: Any = USE_CLIENT_DEFAULT,  # noqa: ASYNC109 - KServe's
    ) -> bool:
        """Return whether the server is live."""
        path = "/" if self._is_v1() else "/v2/health/live"
        body = _decode(_checked(await self._send("GET", base_url, path, headers, timeout)))
        return str(body.get("status")).lower() == "alive" if self._is_v1() else bool(body.get("live"))

    async def is_model_ready(
        self,
        base_url: str | httpx.URL,
        model_name: str,
        headers: Headers | None = None,
        timeout: Any = USE_CLIENT_DEFAULT,  # noqa: ASYNC109 - KServe's
    ) -> bool:
        """Return whether a model is ready."""
        path = f"/v1/models/{model_name}" if self._is_v1() else f"/v2/models/{model_name}/ready"
        response = await self._send("GET", base_url, path, headers, timeout)
        if not self._is_v1():
            return response.is_success
        return response.status_code != httpx.codes.SERVICE_UNAVAILABLE and bool(
            _decode(_checked(response)).get("ready")
        )

    async def close(self) -> None:
        """Close all connections; safe to call twice."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _is_v1(self) -> bool:
        if not (is_v1(self._config.protocol) or is_v2(self._config.protocol)):
            raise UnsupportedProtocol(self._config.protocol)
        return is_v1(self._config.protocol)

    async def _post(
        self,
        base_url: str | httpx.URL,
        path: str,
        data: InferRequest | Json | bytes,
        headers: Headers | None,
        limit: Any,
    ) -> httpx.Response:
        body, length = data.to_rest() if isinstance(data, InferRequest) else (data, None)
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        sent = httpx.Headers(headers)
        if length is not None:
            sent["content-type"], sent[LENGTH_HEADER] = "application/octet-stream", str(length)
        sent.setdefault("content-type", "application/json")
        return await self._send("POST", base_url, path, sent, limit, content)

    async def _send(
        self,
        method: str,
        base_url: str | httpx.URL,
        path: str,
        headers: Headers | None,
        limit: Any,
        content: bytes | None = None,
    ) -> httpx.Response:
        url = str(base_url).rstrip("/") + path if path else str(base_url)
        if self._config.verbose:
            trace_logger.info("%s %s: %s", method, url, content)
        for attempt in range(self._config.retries + 1):
            try:
                response = await self._client.request(method, url, content=content, headers=headers, timeout=limit)
                break
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if attempt == self._config.retries:
                    raise
                await asyncio.sleep(_RETRY_SECONDS * 2**attempt)
        if self._config.verbose:
            trace_logger.info("%s %s answered %s: %s", method, url, response.status_code, response.text)
        return response


def error_text(response: httpx.Response) -> str:
    """Return the text of an error of either version of the protocol."""
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError, RecursionError):
        return f"The server answered with status {response.status_code}"


def _checked(response: httpx.Response) -> httpx.Response:
    if not response.is_success:
        text = f"{error_text(response)}, '{response.status_code} {response.reason_phrase}' for url '{response.url}'"
        raise httpx.HTTPStatusError(text, request=response.request, response=response)
    return response


def _decode(response: httpx.Response) -> Json:
    try:
        return msgspec.json.decode(response.content, type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise httpx.DecodingError(
            f"The response of {response.url} is not a JSON object: {error}", request=response.request
        ) from error
