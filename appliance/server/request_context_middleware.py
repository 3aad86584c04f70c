"""Every request gets an id and a record, and is told of when it ends."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable, Mapping
from functools import partial

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from appliance.api.route_tags import PROBE, PROTOCOL
from appliance.core.request_context import RequestContext, use_context
from appliance.server.asgi_messages import AsgiMessages, tapped
from appliance.telemetry.recorder import RequestRecorder

# A client's id goes into logs and headers as it is, so it must be harmless there.
_HARMLESS = re.compile(rb"[\x21-\x7e]{1,128}")


class RequestContextMiddleware:
    """An ASGI application that takes or gives `X-Request-Id`, echoes it, and binds it to all events."""

    def __init__(self, app: ASGIApp, telemetry: RequestRecorder) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope["headers"])
        with (
            structlog.contextvars.bound_contextvars(request_id=request_id.decode()),
            use_context(request_id.decode()) as record,
        ):
            record.method, record.path = scope["method"], scope["path"]
            traced = self._telemetry.trace(record, partial(_trace_of, scope["headers"]))
            if traced is not None:
                structlog.contextvars.bind_contextvars(trace_id=record.trace)
            # vLLM reads the id and the trace from the headers, so what we gave must be there too.
            _set(scope, {"x-request-id": request_id.decode(), **record.trace_headers})
            copy = self._telemetry.copy()
            if copy is not None:
                receive, send = tapped(copy, scope["headers"], receive, send)
            wire = AsgiMessages(record, request_id, receive, send)
            try:
                await self._app(scope, wire.receive, wire.send)
            except Exception as error:
                record.error, record.late_status = type(error).__name__, 500
                raise
            finally:
                record.ended = time.monotonic()
                wire.close()
                _learn(record, scope)
                self._telemetry.tell(record, copy, traced)
                structlog.contextvars.unbind_contextvars("trace_id")


def _learn(record: RequestContext, scope: Scope) -> None:
    """What its route says of a request; one that has none was never routed."""
    handler = scope.get("route_handler")
    if handler is not None:
        record.route = scope["path_template"]
        record.protocol = handler.opt.get(PROTOCOL)
        record.is_probe = record.is_probe or PROBE in handler.opt


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if name.lower() == b"x-request-id" and _HARMLESS.fullmatch(value):
            return value
    return uuid.uuid4().hex.encode()


def _trace_of(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[str, str]:
    names = (b"traceparent", b"tracestate")
    return {name.decode(): value.decode("latin-1") for name, value in headers if name.lower() in names}


def _set(scope: Scope, headers: Mapping[str, str]) -> None:
    """The request as if it had come with these headers, and no others of their names."""
    ours = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    names = {name for name, _ in ours}
    scope["headers"] = [*(header for header in scope["headers"] if header[0].lower() not in names), *ours]
