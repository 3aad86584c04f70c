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

from appliance.record import Record, recorded

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
        with (
            structlog.contextvars.bound_contextvars(request_id=request_id.decode()),
            recorded(request_id.decode()) as record,
        ):
            try:
                await self._app(scope, receive, _noting(send, record, request_id))
            finally:
                if scope["path"] not in _QUIET:
                    _tell(scope["method"], scope["path"], record)


def _noting(send: Send, record: Record, request_id: bytes) -> Send:
    async def note(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
            message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
        await send(message)

    return note


def _tell(method: str, path: str, record: Record) -> None:
    log.info(
        "request.ended",
        method=method,
        path=path,
        status=record.status or 0,
        seconds=round(time.monotonic() - record.began, 4),
        model=record.model,
        operation=record.operation,
        prompt_tokens=record.prompt_tokens,
        cached_tokens=record.cached_tokens,
        output_tokens=record.output_tokens,
    )


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if name.lower() == b"x-request-id" and _HARMLESS.fullmatch(value):
            return value
    return uuid.uuid4().hex.encode()


def _without_id(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [header for header in headers if header[0].lower() != b"x-request-id"]
