"""What browsers are told: which pages may ask, and what nobody's page may do with an answer.

Sources: https://fetch.spec.whatwg.org/#http-cors-protocol,
https://cheatsheetseries.owasp.org/cheatsheets/HTTP_Headers_Cheat_Sheet.html
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from appliance.config.security import CorsConfig

Headers = list[tuple[bytes, bytes]]

_ALWAYS: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]

# A year, as browsers' lists of such hosts want it at least.
_TLS_ALWAYS: Headers = [(b"strict-transport-security", b"max-age=31536000")]

# Answers are for one caller at one moment; those that say something else know better.
_UNLESS_SAID: Headers = [(b"cache-control", b"no-store")]

# A page that says nothing itself is none of ours: it may do nothing.
_PAGE: Headers = [
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-opener-policy", b"same-origin"),
]

# Ten minutes, the longest that every browser goes by.
_PREFLIGHT_SECONDS = b"600"


class CorsMiddleware:
    """An ASGI application that says so with every answer, and answers the questions browsers have before a request.

    Without `cors` no page of another origin may ask. Keys travel in headers, never in cookies: no origin gets those.
    """

    def __init__(self, app: ASGIApp, cors: CorsConfig | None) -> None:
        self._app = app
        self._origins = frozenset(() if cors is None else (origin.lower() for origin in cors.origins))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        safety = _ALWAYS + (_TLS_ALWAYS if scope["scheme"] == "https" else [])
        more = [*safety, *self._sharing(scope)]

        # As in `Parting`, no coroutine.
        def told(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message["headers"] = _with(list(message["headers"]), more)
            return send(message)

        if scope["method"] == "OPTIONS" and (answers := self._preflight(scope)):
            await told({"type": "http.response.start", "status": 204, "headers": answers})
            await told({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await self._app(scope, receive, told)

    def _sharing(self, scope: HTTPScope) -> Headers:
        """Whose page may read the answer."""
        if not self._origins:
            return []
        if "*" in self._origins:
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", b"*")]
        origin = _headers(scope).get(b"origin", b"")
        if origin.decode("latin-1").lower() not in self._origins:
            return [(b"vary", b"Origin")]
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", b"*"),
            (b"vary", b"Origin"),
        ]

    def _preflight(self, scope: HTTPScope) -> Headers:
        """What a page may ask; empty where it may not, or where this is no such question."""
        sent, sharing = _headers(scope), dict(self._sharing(scope))
        if b"access-control-request-method" not in sent or b"access-control-allow-origin" not in sharing:
            return []
        # Which headers there are is the client libraries' business; `*` would leave out Authorization.
        wanted = sent.get(b"access-control-request-headers", b"")
        return [
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-max-age", _PREFLIGHT_SECONDS),
            *([(b"access-control-allow-headers", wanted)] if wanted else []),
        ]


def _headers(scope: HTTPScope) -> Mapping[bytes, bytes]:
    return {name.lower(): value for name, value in scope["headers"]}


def _with(headers: Headers, more: Headers) -> Headers:
    """The headers with ours in the place of others of the same names; those of a page stay where it has them."""
    there = {name.lower(): value for name, value in headers}
    page = _PAGE if there.get(b"content-type", b"").startswith(b"text/html") else []
    replaced = {name for name, _ in more} - {b"vary"}
    kept = [header for header in headers if header[0].lower() not in replaced]
    return [*kept, *more, *(header for header in [*_UNLESS_SAID, *page] if header[0] not in there)]
