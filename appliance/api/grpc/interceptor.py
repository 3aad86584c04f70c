"""Around every method: a key where there are keys, a request id and a record, and errors as status codes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeAlias
from uuid import uuid4

import grpc
import structlog
from google.protobuf.message import Message
from grpc import StatusCode

from appliance.api.error_responses import status_and_message
from appliance.auth import Authorizer, Principal, authenticated, current_principal
from appliance.core.errors import RequestError, UnauthenticatedError
from appliance.core.request_context import CLIENT_CLOSED_REQUEST, use_context
from appliance.telemetry.payloads import CapturedBody
from appliance.telemetry.recorder import RequestRecorder

PROTOCOL = "oip_grpc"
"""
What metrics and the log call it.
"""

# https://grpc.io/docs/guides/status-codes, for the HTTP statuses that errors here have.
_CODES: Mapping[int, StatusCode] = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    409: StatusCode.FAILED_PRECONDITION,
    413: StatusCode.RESOURCE_EXHAUSTED,
    429: StatusCode.RESOURCE_EXHAUSTED,
    502: StatusCode.UNAVAILABLE,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}

# Asked every few seconds by machines; an event each would drown the rest.
_QUIET = ("/grpc.health.v1.", "/inference.GRPCInferenceService/Server")

# What probes ask needs no key.
_OPEN = (
    "/grpc.health.v1.",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
)

_LONGEST_ID = 128

# https://www.iana.org/assignments/media-types, for messages as they are on the wire.
_MEDIA_TYPE = "application/protobuf"

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"  # Any: each method has its own messages


class GrpcInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the methods that answer once; the streams, of health and reflection, answer for themselves."""

    def __init__(self, access: Authorizer, telemetry: RequestRecorder | None = None) -> None:
        self._access = access
        self._telemetry = telemetry

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The handler of a method, wrapped."""
        handler = await continuation(handler_call_details)
        # None is a method that nobody has; gRPC answers it.
        if handler is None:
            return handler
        method = handler_call_details.method
        caller, _ = recognised(self._access, handler_call_details.invocation_metadata)
        is_refused = caller is None and self._access.is_closed and not method.startswith(_OPEN)
        if handler.unary_unary is None:
            return grpc.stream_stream_rpc_method_handler(_refuse_stream) if is_refused else handler
        answer = _refuse if is_refused else handler.unary_unary

        async def guarded(request: Any, context: Any) -> Any:  # Any: each method has its own messages
            with authenticated(caller):
                return await _guarded(answer, method, request, context, self._telemetry)

        # The message of one who may not ask stays the bytes that came.
        deserializer = None if is_refused else handler.request_deserializer
        return grpc.unary_unary_rpc_method_handler(guarded, deserializer, handler.response_serializer)


def recognised(
    access: Authorizer, metadata: Iterable[tuple[str, str | bytes]] | None
) -> tuple[Principal | None, dict[str, str]]:
    """Who sent this metadata, and what of it is text, without keys, by lower-case name."""
    pairs = [(name.encode(), value.encode()) for name, value in metadata or () if isinstance(value, str)]
    caller, kept = access.recognise(pairs)
    return caller, {name.decode(): value.decode() for name, value in kept}


async def _refuse(_request: Any, _context: Any) -> Any:  # Any: each method has its own messages
    raise UnauthenticatedError


async def _refuse_stream(_requests: Any, context: Any) -> None:  # Any: each method has its own messages
    await context.abort(StatusCode.UNAUTHENTICATED, str(UnauthenticatedError()))


async def _guarded(
    answer: Any, method: str, request: Any, context: Any, telemetry: RequestRecorder | None
) -> Any:  # Any: of each method
    sent = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
    asked = sent.get("x-request-id", "")
    # A client's id goes into the log and into metadata as it is, and metadata is ASCII.
    request_id = asked if 0 < len(asked) <= _LONGEST_ID and asked.isascii() and asked.isprintable() else uuid4().hex
    with structlog.contextvars.bound_contextvars(request_id=request_id), use_context(request_id) as record:
        record.path = record.route = method
        record.protocol, record.is_probe = PROTOCOL, method.startswith(_QUIET)
        record.grpc_status, record.status = StatusCode.OK.name, 200
        if (caller := current_principal()) is not None:
            record.key = caller.name
        traced = None if telemetry is None else telemetry.trace(record, lambda: sent)
        if (copy := None if telemetry is None else telemetry.copy()) is not None:
            _keep(copy.request, request)
        try:
            await context.send_initial_metadata((("x-request-id", request_id),))
            reply = await answer(request, context)
            if copy is not None:
                _keep(copy.response, reply)
            return reply
        except asyncio.CancelledError:
            record.grpc_status, record.status = StatusCode.CANCELLED.name, CLIENT_CLOSED_REQUEST
            raise
        except Exception as error:
            status, text = status_and_message(method, error)
            code = _CODES.get(status, StatusCode.INTERNAL if status >= 500 else StatusCode.INVALID_ARGUMENT)
            record.grpc_status, record.status, record.error = code.name, status, type(error).__name__
            await context.abort(code, text, trailing_metadata=_trailing(error))
        finally:
            record.ended = time.monotonic()
            if telemetry is not None:
                telemetry.tell(record, copy, traced)


def _keep(body: CapturedBody, message: Message | bytes) -> None:
    body.media_type = _MEDIA_TYPE
    body.add(message if isinstance(message, bytes) else message.SerializeToString())


def _trailing(error: Exception) -> tuple[tuple[str, str], ...]:
    if isinstance(error, RequestError) and error.retry_after is not None:
        return (("retry-after", str(error.retry_after)),)
    return ()
