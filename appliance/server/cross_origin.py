"""Protection of a server without keys against pages in the browsers of those who can reach it.

Any page can send requests to any address its reader's browser reaches (cross-site request forgery), and can read the
answers once the name of its own site resolves to that address (DNS rebinding). Keys stop both, because no page has one.

Browsers send `Origin` with each request of a page other than GET and HEAD, and `Sec-Fetch-Site` over TLS and to the
loopback. After rebinding a GET has neither; only `Host` shows it. No page can send gRPC. TLS ends rebinding, because
no certificate here is for the name of the page's site.

Sources: https://words.filippo.io/csrf/, https://www.w3.org/TR/fetch-metadata/,
https://github.com/ollama/ollama (allowedHostsMiddleware in server/routes.go).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from litestar.enums import ScopeType
from litestar.handlers import BaseRouteHandler
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send
from litestar.utils import normalize_path

from appliance.auth import Authorizer
from appliance.auth.allowed_hosts import AllowedHosts, split_authority
from appliance.auth.principal import foreign
from appliance.config.server import ServerConfig, is_loopback
from appliance.core.errors import ForbiddenError
from appliance.server.auth_middleware import open_paths, refuse

# Answers that people read in a browser and that say how the server is set up.
_SENSITIVE = frozenset({"/config"})

_PORTS = {"http": 80, "https": 443}


class CrossOriginProtection:
    """An ASGI application that refuses other origins, and names that may be rebound, while there are no keys.

    Probes always pass, as platforms call them by whatever name they have, but tell such a request their status alone.
    """

    def __init__(
        self, app: ASGIApp, access: Authorizer, server: ServerConfig, handlers: Iterable[BaseRouteHandler]
    ) -> None:
        self._app = app
        self._access = access
        self._open = open_paths(handlers)
        self._origins = frozenset(() if server.cors is None else (each.lower() for each in server.cors.origins))
        self._hosts = AllowedHosts(server.allowed_hosts or ())
        # A server that all interfaces reach has names that only its network knows: those are for programs.
        self._is_strict = server.allowed_hosts is not None or is_loopback(server.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = None
        if scope["type"] == ScopeType.HTTP and not self._access.is_closed:
            headers = _Headers(scope)
            error = self._foreign_page(headers, scope) or self._rebound_name(headers, scope)
        if error is None:
            await self._app(scope, receive, send)
        elif normalize_path(scope["path"]) in self._open:
            with foreign():
                await self._app(scope, receive, send)
        else:
            await refuse(scope, receive, send, error)

    def _foreign_page(self, headers: _Headers, scope: HTTPScope) -> ForbiddenError | None:
        if "*" in self._origins:
            return None
        for origin in headers.origins:
            if origin.lower() not in self._origins and not _is_same(origin, headers.hosts):
                return ForbiddenError(
                    f"Pages of {origin[:100]!r} may not ask this server; server.cors.origins in the config allows it"
                )
        # A link to the page is fine; an image or a script of another site is not.
        is_link = scope["method"] in {"GET", "HEAD"} and headers.fetch_mode == "navigate"
        if not headers.origins and headers.fetch_site in {"cross-site", "same-site"} and not is_link:
            return ForbiddenError("Pages of other sites may not ask this server; server.cors in the config allows it")
        return None

    def _rebound_name(self, headers: _Headers, scope: HTTPScope) -> ForbiddenError | None:
        if scope["scheme"] == "https" or headers.came_over_tls:
            return None
        is_at_risk = bool(headers.origins) or normalize_path(scope["path"]) in _SENSITIVE | self._open
        if not self._is_strict and not is_at_risk:
            return None
        for host in headers.hosts:
            if not self._hosts.allow(host):
                return ForbiddenError(
                    f"This server is not called {host[:100]!r}; server.allowed_hosts in the config allows the name"
                )
        return None


class _Headers:
    """What a request says of the page it comes from, and of the server it is for."""

    def __init__(self, scope: HTTPScope) -> None:
        values: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            values.setdefault(name.lower(), []).append(value.decode("latin-1").strip())
        self.hosts: Sequence[str] = values.get(b"host", [])
        self.origins: Sequence[str] = values.get(b"origin", [])
        self.fetch_site = "".join(values.get(b"sec-fetch-site", []))
        self.fetch_mode = "".join(values.get(b"sec-fetch-mode", []))

    @property
    def came_over_tls(self) -> bool:
        """Whether a server before this one ended TLS: browsers say so themselves, and scripts cannot set either."""
        return all(origin.startswith("https://") for origin in self.origins) and bool(self.origins or self.fetch_site)


def _is_same(origin: str, hosts: Sequence[str]) -> bool:
    """Whether an origin is this server, by the name the request is for; the scheme is that of a server before it."""
    scheme, _, authority = origin.partition("://")
    port = _PORTS.get(scheme)
    if port is None or not hosts:
        return False
    own = split_authority(authority, port)
    return own is not None and all(split_authority(host, port) == own for host in hosts)
