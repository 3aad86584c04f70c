"""
Every request gets an id, and one event in the log.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# A client's id goes into logs and headers as it is, so it must be harmless there.
_HARMLESS = re.compile(rb"[\x21-\x7e]{1,128}")

# Asked every few seconds by machines; an event each would drown the rest.
_QUIET = frozenset({"/livez", "/readyz", "/startupz", "/health", "/ping", "/metrics"})


class Observed:
    """
    An ASGI application that takes or gives `X-Request-Id`, echoes it, and binds it to all events.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope["headers"])
        # vLLM reads the id from the headers, so the one we gave must be there too.
        scope["headers"] = [*_without_id(scope["headers"]), (b"x-request-id", request_id)]
        status = 0

        async def echo(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        started = time.monotonic()
        with structlog.contextvars.bound_contextvars(request_id=request_id.decode()):
            try:
                await self._app(scope, receive, echo)
            finally:
                if scope["path"] not in _QUIET:
                    seconds = round(time.monotonic() - started, 4)
                    log.info(
                        "request.ended", method=scope["method"], path=scope["path"], status=status, seconds=seconds
                    )


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if name.lower() == b"x-request-id" and _HARMLESS.fullmatch(value):
            return value
    return uuid.uuid4().hex.encode()


def _without_id(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [header for header in headers if header[0].lower() != b"x-request-id"]
