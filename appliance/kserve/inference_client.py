"""KServe's client of the protocol's versions 1 and 2 over REST."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
import msgspec
from yarl import URL

from appliance.core.errors import GatewayError, GatewayTimeoutError, RequestError, UnreachableError
from appliance.core.openai_types import Json
from appliance.kserve.errors import UnsupportedProtocol
from appliance.kserve.utils.utils import is_v1, is_v2
from appliance.python_api.infer_types import InferRequest, InferResponse
from appliance.tensors.codec import LENGTH_HEADER

USE_CLIENT_DEFAULT = object()
"""The timeout of the client's config."""

Headers = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RESTConfig:
    """How a client sends requests; a `timeout` of None is none, `verify` may be a file of certificates."""

    protocol: str = "v1"
    retries: int = 3
    """Further attempts if no connection can be opened."""
    timeout: float | None = 60
    verify: bool | str | ssl.SSLContext = True

    @property
    def ssl(self) -> bool | ssl.SSLContext:
        """What aiohttp verifies certificates with."""
        return ssl.create_default_context(cafile=self.verify) if isinstance(self.verify, str) else self.verify


class InferenceRESTClient:
    """Sends requests to models elsewhere; close it, or use it as an asynchronous context manager.

    Every method raises a `RequestError` with the status of the response that is an error, a `GatewayError` if there is
    none, and `UnsupportedProtocol`.
    """

    def __init__(self, config: RESTConfig | None = None) -> None:
        self._config = config or RESTConfig()
        self._session: aiohttp.ClientSession | None = None

    async def infer(
        self,
        base_url: str | URL,
        data: InferRequest | Json,
        model_name: str | None = None,
        headers: Headers | None = None,
        response_headers: dict[str, str] | None = None,
        is_graph_endpoint: bool = False,  # noqa: FBT001, FBT002, RUF100 - KServe's
        timeout: object = USE_CLIENT_DEFAULT,  # noqa: ASYNC109 - KServe's
    ) -> InferResponse | Json:
        """Return the response of a model: an object in version 1 and of a graph, tensors in version 2."""
        if is_graph_endpoint:
            path = ""
        elif model_name is None:
            raise ValueError("model_name is None; give the name of the model")
        else:
            path = f"/v1/models/{model_name}:predict" if self._is_v1() else f"/v2/models/{model_name}/infer"
        body, body_headers = _encode(data)
        sent = {**{name.lower(): value for name, value in (headers or {}).items()}, **body_headers}
        content, received = await self._request("POST", base_url, path, sent, timeout, body)
        if response_headers is not None:
            response_headers.update(received)
        if is_graph_endpoint or self._is_v1():
            return _decode(content)
        return InferResponse.from_bytes(content, int(received.get(LENGTH_HEADER, len(content))))

    async def explain(
        self,
        base_url: str | URL,
        model_name: str,
        data: Json,
        headers: Headers | None = None,
        timeout: object = USE_CLIENT_DEFAULT,  # noqa: ASYNC109 - KServe's
    ) -> Json:
        """Return the explanation of a model, in version 1."""
        if not self._is_v1():
            raise UnsupportedProtocol(self._config.protocol)
        body, body_headers = _encode(data)
        sent = {**{name.lower(): value for name, value in (headers or {}).items()}, **body_headers}
        content, _ = await self._request("POST", base_url, f"/v1/models/{model_name}:explain", sent, timeout, body)
        return _decode(content)

    async def is_server_ready(
        self,
        base_url: str | URL,
        headers: Headers | None = None,
        timeout: object = USE_CLIENT_DEFAULT,  # noqa: ASYNC109 - KServe's
    ) -> bool:
        """Return whether the server is ready, in version 2."""
        if self._is_v1():
            raise UnsupportedProtocol(self._config.protocol)
        content, _ = await self._request("GET", base_url, "/v2/health/ready", headers or {}, timeout)
        return bool(_decode(content).get("ready"))

    async def is_server_live(
        self,
        base_url: str | URL,
        headers: Headers | None = None,
        timeout: object = USE_CLIENT_DEFAULT,  # noqa: ASYNC109 - KServe's
    ) -> bool:
        """Return whether the server is live."""
        path = "/" if self._is_v1() else "/v2/health/live"
        content, _ = await self._request("GET", base_url, path, headers or {}, timeout)
        body = _decode(content)
        return str(body.get("status")).lower() == "alive" if self._is_v1() else bool(body.get("live"))

    async def is_model_ready(
        self,
        base_url: str | URL,
        model_name: str,
        headers: Headers | None = None,
        timeout: object = USE_CLIENT_DEFAULT,  # noqa: ASYNC109 - KServe's
    ) -> bool:
        """Return whether a model is ready."""
        path = f"/v1/models/{model_name}" if self._is_v1() else f"/v2/models/{model_name}/ready"
        try:
            content, _ = await self._request("GET", base_url, path, headers or {}, timeout)
        except RequestError as error:
            if isinstance(error, GatewayError) or (self._is_v1() and error.status != 503):
                raise
            return False
        return bool(_decode(content).get("ready")) if self._is_v1() else True

    async def close(self) -> None:
        """Close all connections; safe to call twice."""
        if self._session is not None:
            await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _is_v1(self) -> bool:
        if not (is_v1(self._config.protocol) or is_v2(self._config.protocol)):
            raise UnsupportedProtocol(self._config.protocol)
        return is_v1(self._config.protocol)

    async def _request(
        self, method: str, base_url: str | URL, path: str, headers: Headers, limit: object, body: bytes | None = None
    ) -> tuple[bytes, dict[str, str]]:
        """Return body and headers of a response, by lower-case name."""
        url = URL(str(base_url).rstrip("/") + path)
        seconds: Any = self._config.timeout if limit is USE_CLIENT_DEFAULT else limit  # Any: a number or None
        if self._session is None or self._session.closed:
            # Proxies of the environment, as in KServe.
            self._session = aiohttp.ClientSession(trust_env=True)
        options: dict[str, Any] = {"timeout": aiohttp.ClientTimeout(seconds), "ssl": self._config.ssl}
        for attempt in range(self._config.retries + 1):
            try:
                async with self._session.request(method, url, data=body, headers=headers, **options) as response:
                    content = await response.read()
                    received = {name.lower(): value for name, value in response.headers.items()}
            except aiohttp.ClientConnectorError as error:
                if attempt == self._config.retries:
                    raise UnreachableError("The server cannot be reached", detail=f"{url.origin()}: {error}") from error
            except TimeoutError as error:
                raise GatewayTimeoutError(f"The server did not answer within {seconds} seconds") from error
            except aiohttp.ClientError as error:
                raise GatewayError("The server's response broke off", detail=f"{url.origin()}: {error}") from error
            else:
                if response.status >= 400:
                    raise RequestError(_error_text(content, response.status), status=response.status)
                return content, received
            await asyncio.sleep(0.1 * 2**attempt)
        raise AssertionError("a loop with a last attempt ended; this is a bug")


def _encode(data: InferRequest | Json) -> tuple[bytes, dict[str, str]]:
    body, length = data.to_rest() if isinstance(data, InferRequest) else (data, None)
    if isinstance(body, bytes):
        return body, {"content-type": "application/octet-stream", LENGTH_HEADER: str(length)}
    return msgspec.json.encode(body), {"content-type": "application/json"}


def _decode(content: bytes) -> Json:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise GatewayError(f"The server's response is not a JSON object: {error}") from error


def _error_text(content: bytes, status: int) -> str:
    try:
        error = msgspec.json.decode(content)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError, RecursionError):
        return f"The server answered with status {status}"
