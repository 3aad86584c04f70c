"""The HTTP client of one upstream."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping
from functools import partial
from io import BytesIO
from typing import cast

from aiohttp import (
    ClientConnectionError,
    ClientConnectionResetError,
    ClientConnectorCertificateError,
    ClientConnectorDNSError,
    ClientConnectorError,
    ClientConnectorSSLError,
    ClientHttpProxyError,
    ClientOSError,
    ClientPayloadError,
    ClientProxyConnectionError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    ConnectionTimeoutError,
    DummyCookieJar,
    TCPConnector,
    encode_basic_auth,
)
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.streams import StreamReader
from yarl import URL

from appliance.config.upstreams import UpstreamConfig, UpstreamTlsConfig
from appliance.core.distribution import version
from appliance.core.errors import GatewayError, GatewayTimeoutError, UnreachableError
from appliance.core.http import (
    FRAMING_HEADERS,
    HOP_BY_HOP_HEADERS,
    EnvironmentProxy,
    environment_proxy,
    join_url,
)
from appliance.proxy.connection import ConnectionResponse, Origin, RawResponse
from appliance.proxy.response import CONNECTION_ERRORS, UpstreamResponse

_LONG_BYTES = 256 * 1024

# A body up to this size is written at once; transports do not ask their writers to wait for it.
_SHORT_BYTES = 64 * 1024

# A config that sets them changes how a body is sent.
_SESSION_HEADERS = HOP_BY_HOP_HEADERS | FRAMING_HEADERS | {"content-encoding"}

# Clients get only this: addresses and certificates are details for operators.
_UNREACHABLE = "The upstream cannot be reached."

# Servers send one or two: 100 Continue, 103 Early Hints.
_MAX_INTERIM_RESPONSES = 16

# OpenSSL's x509_vfy.h: X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH; CERT_NOT_YET_VALID and
# CERT_HAS_EXPIRED.
_WRONG_NAME = frozenset({62, 64})
_WRONG_TIME = frozenset({9, 10})


class UpstreamClient:
    """Sends requests to one upstream; keeps connections open, one for each concurrent request."""

    def __init__(self, config: UpstreamConfig) -> None:
        self.config = config
        self._session: ClientSession | None = None
        self._origins: dict[tuple[str, str | None, int | None], Origin] = {}
        self._needs_session = True
        self._proxy_headers: Mapping[str, str] | None = None
        self._default_headers = {"user-agent": f"appliance/{version()}", "accept-encoding": "identity"}
        if key := config.api_key.get_secret_value() if config.api_key else "":
            self._default_headers["authorization"] = f"Bearer {key}"
        self._fixed_headers = {name.lower(): value.get_secret_value() for name, value in config.headers.items()}

    async def send(
        self, path: str, body: bytes | None, headers: Mapping[str, str] = {}, *, query: str = ""
    ) -> UpstreamResponse:
        """POST `body` to a route of OpenAI's protocol such as ``/v1/embeddings``; None sends a GET.

        `headers` have lower-case names and went through `forward_request_headers`. A body is JSON unless they say
        otherwise.

        Raises:
            GatewayError: there is no response, or not in time.
        """
        return await self.send_to(join_url(self.config.url, path, query), body, headers)

    async def send_to(self, url: URL, body: bytes | None, headers: Mapping[str, str] = {}) -> UpstreamResponse:
        """Send the same to any URL of the upstream."""
        session = self._session = self._session or self._open_session()
        timeouts = self.config.timeouts
        sent_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(min(timeouts.first_byte_seconds, timeouts.total_seconds or float("inf"))):
                response: RawResponse
                if body is None or len(body) > _SHORT_BYTES or self._needs_session or url.user is not None:
                    response = await self._request(session, url, body, headers)
                else:
                    response = await self._post(session, url, body, headers)
        except CONNECTION_ERRORS as error:
            raise _gateway_error(error) from error
        try:
            # A client can get a final status alone (RFC 9110, section 15).
            if 300 <= response.status < 400:
                raise GatewayError("The upstream redirects, and redirects are not followed; set its url to the target.")
            if not 200 <= response.status < 600:
                raise GatewayError(
                    f"The upstream answered with the status {response.status}, which is not a final response."
                )
            return UpstreamResponse(response, self.config, sent_at)
        except GatewayError:
            response.close()
            raise

    async def _post(
        self, session: ClientSession, url: URL, body: bytes, headers: Mapping[str, str]
    ) -> ConnectionResponse:
        key = url.scheme, url.raw_host, url.port
        if (origin := self._origins.get(key)) is None:
            connector = cast("TCPConnector", session.connector)
            origin = self._origins[key] = Origin(url, connector, self.config.timeouts.connect_seconds)
        sent = {
            "host": origin.host,
            "accept": "*/*",
            **self._default_headers,
            "content-type": "application/json",
            **headers,
            **self._fixed_headers,
            "content-length": str(len(body)),
        }
        return await origin.post(url.raw_path_qs, sent, body)

    async def _request(
        self, session: ClientSession, url: URL, body: bytes | None, headers: Mapping[str, str]
    ) -> ClientResponse:
        content_type = {} if body is None else {"content-type": "application/json"}
        return await session.request(
            "GET" if body is None else "POST",
            url,
            # aiohttp sends a file piece by piece, so that other requests are not delayed.
            data=BytesIO(body) if body is not None and len(body) > _LONG_BYTES else body,
            headers={**self._default_headers, **content_type, **headers, **self._fixed_headers},
            proxy_headers=self._proxy_headers,
            # A redirect would send the API key to another address.
            allow_redirects=False,
        )

    async def close(self) -> None:
        """Close every connection; safe to call twice."""
        if self._session is not None:
            await self._session.close()
            self._session = None
            self._origins.clear()

    def _open_session(self) -> ClientSession:
        """Return a session without connections.

        Raises:
            UnreachableError: the certificates cannot be read, or the environment's proxy is of an unsupported kind.
        """
        config = self.config
        proxy = _proxy(URL(config.url))
        self._needs_session = proxy is not None or not _SESSION_HEADERS.isdisjoint(self._fixed_headers)
        if proxy is not None and (proxy.user or proxy.password):
            login = {"proxy-authorization": encode_basic_auth(proxy.user, proxy.password)}
            if config.url.startswith("https:"):
                # To the proxy alone, which opens a tunnel.
                self._proxy_headers = login
            else:
                self._fixed_headers |= login
        connector = TCPConnector(
            # One connection for each request; concurrency is limited before requests get here.
            limit=0,
            ssl=True if config.tls is None else _ssl_context(config.tls),
        )
        connector._factory = partial(_LimitedResponseHandler, loop=asyncio.get_running_loop())  # type: ignore[assignment]  # aiohttp offers no other way to set the protocol
        return ClientSession(
            connector=connector,
            # Cookies of one client must not reach another.
            cookie_jar=DummyCookieJar(),
            # UpstreamResponse has the other timeouts: aiohttp would count a slow client's time as the upstream's.
            timeout=ClientTimeout(total=None, connect=config.timeouts.connect_seconds),
            # UpstreamResponse decodes in pieces of limited size.
            auto_decompress=False,
            proxy=None if proxy is None else proxy.url,
        )


class _LimitedResponseHandler(ResponseHandler):
    """aiohttp's protocol with a limit of interim responses (RFC 9110, section 15.2), which aiohttp collects."""

    _interim = 0

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        if not 100 <= data[0].code < 200 or data[0].code == 101:
            self._interim = 0
            super().feed_data(data, size)
            return
        self._interim += 1
        if self._interim > _MAX_INTERIM_RESPONSES:
            self.set_exception(ClientPayloadError(f"more than {_MAX_INTERIM_RESPONSES} responses of {data[0].code}"))
            self.abort()


def _proxy(url: URL) -> EnvironmentProxy | None:
    """Return the environment's proxy; logins come from its URL, not from `.netrc`, which belongs to the user."""
    try:
        proxy = environment_proxy(url.origin())
    except ValueError as error:
        raise UnreachableError(_UNREACHABLE, detail=str(error)) from error
    if proxy is not None and proxy.url.scheme not in ("http", "https"):
        raise UnreachableError(
            _UNREACHABLE,
            detail=f"{proxy.variable} names a {proxy.url.scheme} proxy, and only http:// and https:// proxies are "
            f"supported; name such a one, or {url.host} in NO_PROXY",
        )
    return proxy


def _ssl_context(config: UpstreamTlsConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=config.ca)
    except OSError as error:
        raise UnreachableError(_UNREACHABLE, detail=f"its tls.ca {config.ca} cannot be used: {error}") from error
    if config.certificate is not None:
        # Without a password OpenSSL would ask for one on the terminal.
        password = config.key_password.get_secret_value() if config.key_password else ""
        try:
            context.load_cert_chain(config.certificate, config.key, password)
        except (OSError, ValueError) as error:
            raise UnreachableError(
                _UNREACHABLE, detail=f"its tls.certificate {config.certificate} or its key cannot be used: {error}"
            ) from error
    return context


def _gateway_error(error: Exception) -> GatewayError:
    """Return the error for a request that got no response."""
    match error:
        case ConnectionTimeoutError():
            return UnreachableError(
                "The upstream cannot be reached in time.",
                detail="no connection was established within timeouts.connect_seconds",
            )
        case TimeoutError():
            return GatewayTimeoutError(
                "The upstream did not answer in time.",
                detail="it accepted the request, and sent no response within timeouts.first_byte_seconds",
            )
        case ClientHttpProxyError():
            reason = f"{error.status} {error.message}"
            return UnreachableError(_UNREACHABLE, detail=f"the proxy of the environment refuses to connect: {reason}")
        case ClientConnectorError():
            return UnreachableError(_UNREACHABLE, detail=_connect_error(error))
        case ClientPayloadError():
            return GatewayError("The upstream's response is not HTTP.", detail=f"its response never begins: {error}")
        case ClientOSError() if isinstance(error.__cause__, ClientConnectionResetError):
            # A body that was not written: whatever the request is, it was not begun.
            return UnreachableError(_UNREACHABLE, detail="it closed the connection before the request was sent")
        case ClientConnectionError() | OSError():
            return GatewayError(
                "The upstream closed the connection before it answered.",
                detail=f"it closed the connection before it answered: {error}",
            )
        case _:
            return GatewayError("The upstream's response is not HTTP.", detail=f"its response is not HTTP: {error}")


def _connect_error(error: ClientConnectorError) -> str:
    """Describe why there is no connection, with the remedy."""
    address = f"{error.host}:{error.port}"
    match error:
        case ClientConnectorCertificateError():
            return _certificate_error(address, error.certificate_error)
        case ClientConnectorSSLError():
            reason = getattr(error.os_error, "reason", None) or error.os_error
            return f"the TLS handshake with {address} failed: {reason}; check tls, and that its url is https://"
        case ClientConnectorDNSError():
            return f"the host {error.host} is unknown: {error.os_error.strerror or error.os_error}; check its url"
        case ClientProxyConnectionError():
            return f"the proxy of the environment on the way to {address} cannot be reached: {error.os_error}"
        case _:
            # asyncio and uvloop replace the system's message with their own.
            reason = os.strerror(error.os_error.errno) if error.os_error.errno else error.os_error
            return f"{address} cannot be reached: {reason}"


def _certificate_error(address: str, error: Exception) -> str:
    code = getattr(error, "verify_code", None)
    reason = str(getattr(error, "verify_message", error)).rstrip(".")
    if code in _WRONG_NAME:
        return f"the certificate of {address} is for other names; check the host of its url"
    if code in _WRONG_TIME:
        return f"the certificate of {address} is not valid now: {reason}; it must be renewed there"
    return f"the certificate of {address} is not trusted: {reason}; name its authority in tls.ca"
