"""Asking clients to go elsewhere, while they are still answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send


class ConnectionCloseMiddleware:
    """An ASGI application whose answers close their connection once it is about to leave.

    A client that keeps connections hears nothing of readiness, and would go on with the one it has. HTTP/2 has no such
    header: its connections are told to go by the listener (`Listener.dismiss`).

    Source: RFC 9112, section 9.6.
    """

    def __init__(self, app: ASGIApp, is_leaving: Callable[[], bool]) -> None:
        self._app = app
        self._is_leaving = is_leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_keeping = scope["type"] == ScopeType.HTTP and scope["http_version"] == "1.1"
        await self._app(scope, receive, self._closing(send) if is_keeping else send)

    def _closing(self, send: Send) -> Send:
        # No coroutine of its own: it would cost as much as all else that is done for a token here.
        def close(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start" and self._is_leaving():
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            return send(message)

        return close
