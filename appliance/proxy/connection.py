"""The connections to one upstream: through a proxy or not, with which certificates, and how much they take in.

aiohttp is imported here at once, and this module only when a connection is wanted.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from aiohttp import ClientPayloadError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, encode_basic_auth
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.streams import StreamReader
from yarl import URL

from appliance.config.upstreams import UpstreamConfig, UpstreamTlsConfig
from appliance.core.errors import UnreachableError
from appliance.core.http import environment_proxy
from appliance.proxy.errors import UNREACHABLE

# Servers send one or two: 100 Continue, 103 Early Hints.
_MOST_INTERIM = 16


class _Connection(ResponseHandler):
    """aiohttp's, which takes any number of interim responses (RFC 9110, section 15.2) and holds them all."""

    _interim = 0

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        if not 100 <= data[0].code < 200 or data[0].code == 101:
            self._interim = 0
            super().feed_data(data, size)
            return
        self._interim += 1
        if self._interim > _MOST_INTERIM:
            self.set_exception(ClientPayloadError(f"more than {_MOST_INTERIM} responses of {data[0].code}"))
            self.abort()


@dataclass(frozen=True, slots=True)
class Connections:
    """A session for one upstream, and the headers that a proxy on the way wants."""

    session: ClientSession
    headers: Mapping[str, str] = field(default_factory=dict)
    """In each request, where the proxy reads those."""
    proxy_headers: Mapping[str, str] | None = None
    """To the proxy alone, where it makes a tunnel."""

    @classmethod
    def open(cls, config: UpstreamConfig) -> Connections:
        """The connections of a section, none of which stands yet.

        Raises:
            UnreachableError: the certificates cannot be read, or the environment's proxy is none that can be used.
        """
        proxy = _proxy(URL(config.url))
        connector = TCPConnector(
            # The number of connections is the number of requests; what limits those stands before us.
            limit=0,
            ssl=True if config.tls is None else _context(config.tls),
        )
        connector._factory = partial(_Connection, loop=asyncio.get_running_loop())  # type: ignore[assignment]  # its own
        session = ClientSession(
            connector=connector,
            # One client's cookies are not another's.
            cookie_jar=DummyCookieJar(),
            # The other timeouts are ours: aiohttp's would count a slow client's time as the upstream's silence.
            timeout=ClientTimeout(total=None, connect=config.timeouts.connect_seconds),
            # They are undone in `decoding`, which has bounds.
            auto_decompress=False,
            proxy=None if proxy is None else proxy.with_user(None),
        )
        if proxy is None or proxy.user is None:
            return cls(session)
        login = {"Proxy-Authorization": encode_basic_auth(proxy.user, proxy.password or "")}
        return cls(session, proxy_headers=login) if config.url.startswith("https:") else cls(session, login)


def _proxy(url: URL) -> URL | None:
    """The proxy that the environment names; no `.netrc`, which is the user's and not the server's."""
    proxy = environment_proxy(url.origin())
    if proxy is not None and proxy.scheme not in ("http", "https"):
        variable = f"{url.scheme}_proxy".upper()
        raise UnreachableError(
            UNREACHABLE,
            detail=f"{variable} names a proxy of the kind {proxy.scheme}; upstreams are reached through http:// and "
            f"https:// ones, so name such a one, or {url.host} in NO_PROXY",
        )
    return proxy


def _context(config: UpstreamTlsConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=config.ca)
    except OSError as error:
        raise UnreachableError(UNREACHABLE, detail=f"its tls.ca {config.ca} cannot be used: {error}") from error
    if config.certificate is not None:
        # Without a password OpenSSL would ask for one on the terminal.
        password = config.key_password.get_secret_value() if config.key_password else ""
        try:
            context.load_cert_chain(config.certificate, config.key, password)
        except (OSError, ValueError) as error:
            raise UnreachableError(
                UNREACHABLE, detail=f"its tls.certificate {config.certificate} or its key cannot be used: {error}"
            ) from error
    return context
