"""
Around every method: a request id, one event in the log, and errors as status codes.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias
from uuid import uuid4

import grpc
import structlog
from grpc import StatusCode

from appliance.errors import CallError
from appliance.protocols.errors import worded

log: structlog.stdlib.BoundLogger = structlog.get_logger()

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

_LONGEST_ID = 128

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"  # Any: each method has its own messages


class Guard(grpc.aio.ServerInterceptor):
    """
    Wraps the methods that answer once; streams of health answer for themselves.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """
        The handler of a method, wrapped.
        """
        handler = await continuation(handler_call_details)
        # None is a method that nobody has; gRPC answers it.
        if handler is None or handler.unary_unary is None:
            return handler
        answer, method = handler.unary_unary, handler_call_details.method

        async def guarded(request: Any, context: Any) -> Any:  # Any: each method has its own messages
            return await _guarded(answer, method, request, context)

        return grpc.unary_unary_rpc_method_handler(guarded, handler.request_deserializer, handler.response_serializer)


async def _guarded(answer: Any, method: str, request: Any, context: Any) -> Any:  # Any: of each method
    sent = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
    asked = sent.get("x-request-id", "")
    # A client's id goes into the log as it is.
    request_id = asked if 0 < len(asked) <= _LONGEST_ID and asked.isprintable() else uuid4().hex
    started, code = time.monotonic(), StatusCode.OK
    with structlog.contextvars.bound_contextvars(request_id=request_id):
        try:
            await context.send_initial_metadata((("x-request-id", request_id),))
            return await answer(request, context)
        except Exception as error:
            status, text = worded(method, error)
            code = _CODES.get(status, StatusCode.INTERNAL if status >= 500 else StatusCode.INVALID_ARGUMENT)
            await context.abort(code, text, trailing_metadata=_trailing(error))
        finally:
            if not method.startswith(_QUIET):
                seconds = round(time.monotonic() - started, 4)
                log.info("request.ended", method="gRPC", path=method, status=code.name, seconds=seconds)


def _trailing(error: Exception) -> tuple[tuple[str, str], ...]:
    if isinstance(error, CallError) and error.retry_after is not None:
        return (("retry-after", str(error.retry_after)),)
    return ()
