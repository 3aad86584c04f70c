"""Nobody gets past it without a key, where there are keys."""

from __future__ import annotations

from collections.abc import Iterable

from litestar.enums import ScopeType
from litestar.handlers import BaseRouteHandler
from litestar.types import ASGIApp, Receive, Scope, Send

from appliance.api.disconnect import discard
from appliance.api.error_responses import refused
from appliance.auth import OPEN, Authorizer, authenticated
from appliance.auth.allowed_hosts import is_local
from appliance.core.errors import RequestError, UnauthenticatedError
from appliance.core.request_context import current_context


class AuthMiddleware:
    """An ASGI application whose every path wants a key, those that nobody has too, but for the ones marked as open.

    Inside it the caller is the current one, and no header has a key any more.
    """

    def __init__(self, app: ASGIApp, access: Authorizer, handlers: Iterable[BaseRouteHandler]) -> None:
        self._app = app
        self._access = access
        self._open = open_paths(handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller, scope["headers"] = self._access.recognise(scope["headers"])
        record = current_context()
        if record is not None and caller is not None:
            record.key = caller.name
        with authenticated(caller, local=scope["type"] == ScopeType.HTTP and is_local(scope)):
            if caller is not None or not self._access.is_closed or self._is_open(scope["path"]):
                await self._app(scope, receive, send)
            else:
                await refuse(scope, receive, send, UnauthenticatedError())

    def _is_open(self, path: str) -> bool:
        return path in self._open or (path == "/metrics" and self._access.are_metrics_open)


def open_paths(handlers: Iterable[BaseRouteHandler]) -> frozenset[str]:
    """The paths of the handlers that are marked as open."""
    return frozenset(path for handler in handlers if handler.opt.get(OPEN) for path in handler.paths)


async def refuse(scope: Scope, receive: Receive, send: Send, error: RequestError) -> None:
    """Answer with an error, in the shape of the path's protocol, before any route is looked for."""
    await discard(receive)
    if record := current_context():
        record.error = type(error).__name__
    body, headers = refused(scope["path"], error)
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    is_head = scope["type"] == ScopeType.HTTP and scope["method"] == "HEAD"
    await send({"type": "http.response.body", "body": b"" if is_head else body, "more_body": False})
