"""The gRPC interceptor: authentication, request context, errors as status codes, telemetry."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias
from uuid import uuid4

import grpc
from google.protobuf.message import DecodeError, Message
from grpc import StatusCode

from appliance.api.error_responses import status_and_message
from appliance.auth import Authorizer, Principal, authenticated
from appliance.core.errors import RequestError, UnauthenticatedError
from appliance.core.request_context import CLIENT_CLOSED_REQUEST, use_context
from appliance.telemetry.payload_log import CapturedBody
from appliance.telemetry.recorder import RequestRecorder

PROTOCOL = "oip_grpc"
"""The protocol's name in metrics and logs."""

# gRPC codes of HTTP statuses (https://grpc.io/docs/guides/status-codes).
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

# Methods of probes: not in the access log.
_PROBE_METHODS = ("/grpc.health.v1.", "/inference.GRPCInferenceService/Server")

# Methods that need no key.
_PUBLIC_METHODS = (
    "/grpc.health.v1.",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
)

_MAX_ID_LENGTH = 128

# Media type of encoded messages (https://www.iana.org/assignments/media-types).
_MEDIA_TYPE = "application/protobuf"

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # Any: each method has its own messages


class GrpcInterceptor(grpc.aio.ServerInterceptor):
    """Wraps unary methods; the streams of health and reflection only need a key."""

    def __init__(self, access: Authorizer, telemetry: RequestRecorder) -> None:
        self._access = access
        self._telemetry = telemetry

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the wrapped handler of a method."""
        handler: Any = await continuation(handler_call_details)  # Any: each method has its own messages
        if handler is None:
            # There is no such method, and gRPC answers.
            return None
        method = handler_call_details.method
        principal, headers = recognize(self._access, handler_call_details.invocation_metadata)
        refusal: UnauthenticatedError | None = None
        if principal is None and self._access.is_closed and not method.startswith(_PUBLIC_METHODS):
            refusal = self._access.refusal((name.encode(), value.encode()) for name, value in headers.items())
        if handler.unary_unary is None:
            refuse = partial(_refuse_stream, refusal)
            return handler if refusal is None else grpc.stream_stream_rpc_method_handler(refuse)

        async def respond(message: bytes, context: Any) -> Message:  # Any: each method has its own messages
            if refusal is not None:
                raise refusal
            try:
                request = handler.request_deserializer(message)
            except DecodeError as error:
                raise RequestError("The message is not one of this method; check the client's .proto") from error
            response: Message = await handler.unary_unary(request, context)
            return response

        async def handle(message: bytes, context: Any) -> Message:  # Any: as above
            with authenticated(principal):
                return await self._handle(respond, principal, method, message, context)

        # Messages are decoded after authentication, and a message that is not valid is the client's error.
        return grpc.unary_unary_rpc_method_handler(handle, None, handler.response_serializer)

    async def _handle(
        self,
        respond: Callable[[bytes, Any], Awaitable[Message]],
        principal: Principal | None,
        method: str,
        message: bytes,
        context: Any,  # Any: each method has its own messages
    ) -> Message:
        headers = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
        request_id = _request_id(headers)
        with use_context(request_id) as record:
            record.path = record.route = method
            record.protocol, record.is_probe = PROTOCOL, method.startswith(_PROBE_METHODS)
            record.grpc_status, record.status = StatusCode.OK.name, 200
            record.key = None if principal is None else principal.name
            span = self._telemetry.start_span(record, lambda: headers)
            capture = self._telemetry.capture()
            if capture is not None:
                _keep(capture.request, message)
            try:
                await context.send_initial_metadata((("x-request-id", request_id),))
                response = await respond(message, context)
                if capture is not None:
                    _keep(capture.response, response.SerializeToString())
                return response
            except asyncio.CancelledError:
                record.grpc_status, record.status = StatusCode.CANCELLED.name, CLIENT_CLOSED_REQUEST
                raise
            except Exception as error:
                status, text = status_and_message(method, error)
                code = _CODES.get(status, StatusCode.INTERNAL if status >= 500 else StatusCode.INVALID_ARGUMENT)
                record.grpc_status, record.status, record.error = code.name, status, type(error).__name__
                retry_after = error.retry_after if isinstance(error, RequestError) else None
                trailing = () if retry_after is None else (("retry-after", str(retry_after)),)
                await context.abort(code, text, trailing_metadata=trailing)
                raise  # abort raises; this tells the type checker.
            finally:
                record.ended = time.monotonic()
                self._telemetry.record(record, capture, span)


def recognize(
    access: Authorizer, metadata: Iterable[tuple[str, str | bytes]] | None
) -> tuple[Principal | None, dict[str, str]]:
    """Return the principal, and the text metadata without keys by lower-case name."""
    pairs = [(name.encode(), value.encode()) for name, value in metadata or () if isinstance(value, str)]
    principal, other = access.authenticate(pairs)
    return principal, {name.decode(): value.decode() for name, value in other}


def _request_id(headers: Mapping[str, str]) -> str:
    """Return the client's id if it can be copied to the log and to metadata, which is ASCII, else a new one."""
    client_id = headers.get("x-request-id", "")
    is_safe = 0 < len(client_id) <= _MAX_ID_LENGTH and client_id.isascii() and client_id.isprintable()
    return client_id if is_safe else uuid4().hex


async def _refuse_stream(
    refusal: UnauthenticatedError | None, _requests: Any, context: Any
) -> None:  # Any: each method has its own messages
    await context.abort(StatusCode.UNAUTHENTICATED, str(refusal))


def _keep(body: CapturedBody, message: bytes) -> None:
    body.media_type = _MEDIA_TYPE
    body.add(message)
