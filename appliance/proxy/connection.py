"""aiohttp sessions to upstreams, and aiohttp's errors as ours.

This module imports aiohttp, which takes 0.2 s, so it is imported when the first request is sent.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from aiohttp import (
    ClientConnectionError,
    ClientConnectorCertificateError,
    ClientConnectorDNSError,
    ClientConnectorError,
    ClientConnectorSSLError,
    ClientError,
    ClientHttpProxyError,
    ClientPayloadError,
    ClientProxyConnectionError,
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
from appliance.core.errors import GatewayError, GatewayTimeoutError, UnreachableError
from appliance.core.http import environment_proxy

CONNECTION_ERRORS: tuple[type[Exception], ...] = (ClientError, OSError)
"""
Raised when a connection fails or breaks; timeouts are among them.
"""

# Clients get only this: addresses and certificates are details for operators.
_UNREACHABLE = "The upstream cannot be reached."

# Servers send one or two: 100 Continue, 103 Early Hints.
_MAX_INTERIM_RESPONSES = 16

# OpenSSL's x509_vfy.h: X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH; CERT_NOT_YET_VALID and
# CERT_HAS_EXPIRED.
_WRONG_NAME = frozenset({62, 64})
_WRONG_TIME = frozenset({9, 10})


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


@dataclass(frozen=True, slots=True)
class Connections:
    """The session of one upstream, and the headers for the HTTP proxy of the environment."""

    session: ClientSession
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers of each request that the proxy reads."""
    proxy_headers: Mapping[str, str] | None = None
    """Headers for the proxy alone, which opens a tunnel."""

    @classmethod
    def open(cls, config: UpstreamConfig) -> Connections:
        """Create the session; it connects when a request is sent.

        Raises:
            UnreachableError: the certificates cannot be read, or the environment's proxy is of an unsupported kind.
        """
        proxy = _proxy(URL(config.url))
        connector = TCPConnector(
            # One connection for each request; concurrency is limited before requests get here.
            limit=0,
            ssl=True if config.tls is None else _ssl_context(config.tls),
        )
        connector._factory = partial(_LimitedResponseHandler, loop=asyncio.get_running_loop())  # type: ignore[assignment]  # aiohttp offers no other way to set the protocol
        session = ClientSession(
            connector=connector,
            # Cookies of one client must not reach another.
            cookie_jar=DummyCookieJar(),
            # UpstreamResponse has the other timeouts: aiohttp would count a slow client's time as the upstream's.
            timeout=ClientTimeout(total=None, connect=config.timeouts.connect_seconds),
            # UpstreamResponse decodes in pieces of limited size.
            auto_decompress=False,
            proxy=None if proxy is None else proxy.with_user(None),
        )
        if proxy is None or proxy.user is None:
            return cls(session)
        login = {"Proxy-Authorization": encode_basic_auth(proxy.user, proxy.password or "")}
        return cls(session, proxy_headers=login) if config.url.startswith("https:") else cls(session, login)


def gateway_error(error: Exception) -> GatewayError:
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


def _proxy(url: URL) -> URL | None:
    """Return the environment's proxy; logins come from its URL, not from `.netrc`, which belongs to the user."""
    proxy = environment_proxy(url.origin())
    if proxy is not None and proxy.scheme not in ("http", "https"):
        variable = f"{url.scheme}_proxy".upper()
        raise UnreachableError(
            _UNREACHABLE,
            detail=f"{variable} names a {proxy.scheme} proxy, and only http:// and https:// proxies are supported; "
            f"name such a one, or {url.host} in NO_PROXY",
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
