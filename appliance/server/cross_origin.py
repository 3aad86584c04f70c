"""What pages in browsers may do: CORS, and protection of a server without keys against other sites.

Any page can send requests to any address its reader's browser reaches (cross-site request forgery), and can read the
responses once the name of its own site resolves to that address (DNS rebinding). Keys stop both, because no page has
one.

Browsers send `Origin` with each request of a page other than GET and HEAD, and `Sec-Fetch-Site` over TLS and to the
loopback. After rebinding a GET has neither; only `Host` shows it. No page can send gRPC. TLS ends rebinding, because
no certificate here is for the name of the page's site.

Litestar's CORS middleware is not used: it replaces the `Vary` header of compressed responses, omits `Vary` if a request
has no `Origin`, rejects a preflight with 400 before authentication, and adds a coroutine to each message of a stream.

Sources: https://fetch.spec.whatwg.org/#http-cors-protocol, https://words.filippo.io/csrf/,
https://www.w3.org/TR/fetch-metadata/, https://github.com/ollama/ollama (allowedHostsMiddleware in server/routes.go).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from litestar.types import HTTPScope
from litestar.utils import normalize_path

from appliance.auth.allowed_hosts import AllowedHosts, split_authority
from appliance.config.server import ServerConfig, is_loopback
from appliance.core.errors import ForbiddenError

RawHeaders = list[tuple[bytes, bytes]]

# Responses that people read in a browser and that describe how the server is set up.
_SENSITIVE = frozenset({"/config"})

_READ = frozenset({b"host", b"origin", b"sec-fetch-site", b"sec-fetch-mode"})

_PORTS = {"http": 80, "https": 443}

# The longest time that every browser honours.
_PREFLIGHT_SECONDS = b"600"


class CrossOriginPolicy:
    """The origins of `server.cors`, and the names of this server that `server.allowed_hosts` allows.

    Keys travel in headers, never in cookies, so no origin gets credentials.
    """

    def __init__(self, server: ServerConfig, public_paths: Collection[str]) -> None:
        self._origins = frozenset(() if server.cors is None else (origin.lower() for origin in server.cors.origins))
        self._hosts = AllowedHosts(server.allowed_hosts or ())
        self._guarded_paths = _SENSITIVE | frozenset(public_paths)
        # A server that listens on all interfaces has names that only its network knows; programs use those.
        self._is_strict = server.allowed_hosts is not None or is_loopback(server.host)

    def response_headers(self, headers: Mapping[bytes, bytes]) -> RawHeaders:
        """Return the CORS headers of the response to a request with these headers; see also `preflight_headers`."""
        if not self._origins:
            return []
        if "*" in self._origins:
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", b"*")]
        origin, vary = headers.get(b"origin", b""), (b"vary", b"Origin")
        if not self._allow(origin):
            return [vary]
        return [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", b"*"), vary]

    def preflight_headers(self, method: str, headers: Mapping[bytes, bytes]) -> RawHeaders:
        """Return the further headers of the response to a preflight; [] if it is none, or its origin is not allowed."""
        if method != "OPTIONS" or not self._origins:
            return []
        if b"access-control-request-method" not in headers or not self._allow(headers.get(b"origin", b"")):
            return []
        # Client libraries choose their headers; `*` would not include Authorization.
        requested = headers.get(b"access-control-request-headers", b"")
        return [
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-max-age", _PREFLIGHT_SECONDS),
            *([(b"access-control-allow-headers", requested)] if requested else []),
        ]

    def _allow(self, origin: bytes) -> bool:
        return "*" in self._origins or origin.decode("latin-1").lower() in self._origins

    def refusal(self, scope: HTTPScope) -> ForbiddenError | None:
        """Return why a request to a server without keys is rejected, or None."""
        headers: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            if (lower := name.lower()) in _READ:
                headers.setdefault(lower, []).append(value.decode("latin-1").strip())
        hosts, origins = headers.get(b"host", []), headers.get(b"origin", [])
        fetch_site, fetch_mode = ("".join(headers.get(name, [])) for name in (b"sec-fetch-site", b"sec-fetch-mode"))
        if "*" not in self._origins:
            for origin in origins:
                if origin.lower() not in self._origins and not _is_same(origin, hosts):
                    sender, key = f"Pages of {origin[:100]!r}", "server.cors.origins"
                    return ForbiddenError(
                        f"{sender} may not send requests to this server; {key} in the config allows it"
                    )
            # A link to a page of ours is fine; an image or a script of another site is not.
            is_link = scope["method"] in {"GET", "HEAD"} and fetch_mode == "navigate"
            if not origins and fetch_site in {"cross-site", "same-site"} and not is_link:
                return ForbiddenError(
                    "Pages of other sites may not send requests to this server; server.cors in the config allows it"
                )
        # A proxy in front may have ended TLS: browsers send these headers, and scripts cannot set them.
        is_behind_tls = all(origin.startswith("https://") for origin in origins) and bool(origins or fetch_site)
        is_checked = self._is_strict or bool(origins) or normalize_path(scope["path"]) in self._guarded_paths
        if scope["scheme"] != "https" and not is_behind_tls and is_checked:
            for host in hosts:
                if not self._hosts.allow(host):
                    return ForbiddenError(
                        f"This server is not called {host[:100]!r}; server.allowed_hosts in the config allows the name"
                    )
        return None


def _is_same(origin: str, hosts: Sequence[str]) -> bool:
    """Return whether an origin is this server; its scheme may be that of a proxy in front."""
    scheme, _, authority = origin.partition("://")
    port = _PORTS.get(scheme)
    if port is None or not hosts:
        return False
    own = split_authority(authority, port)
    return own is not None and all(split_authority(host, port) == own for host in hosts)
