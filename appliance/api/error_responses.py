"""Errors in the format of each protocol.

OpenAI's is ``{"error": {"message", "type", "param", "code"}}``, Anthropic's has ``"type": "error"`` beside it, the Open
Inference Protocol's and Ollama's is ``{"error": "text"}``, that of Text Embeddings Inference has an ``"error_type"``
beside it, Cohere's is ``{"message": "text"}``, for rankings with OpenAI's ``"error"`` beside it.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Literal

import structlog
from litestar import Response
from litestar.enums import HttpMethod
from litestar.exceptions import HTTPException, MethodNotAllowedException
from litestar.types import HTTPScope

from appliance.api.disconnect import AnyRequest
from appliance.core.errors import (
    ApplianceError,
    RequestError,
    UnauthenticatedError,
    anthropic_error_type,
    anthropic_message,
)
from appliance.core.request_context import current_context

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# Paths of the Open Inference Protocol; some are Cohere's.
_OIP_PATH = re.compile(r"/v2(/.*)?|/v1/models/.+:(predict|explain)")

# https://platform.openai.com/docs/guides/error-codes; other client errors are invalid_request_error.
_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}

Format = Literal["openai", "openai_responses", "anthropic", "oip", "tei", "cohere", "cohere_openai"]

_PATHS: Mapping[str, Format] = {
    **dict.fromkeys(("/embed", "/embed_all", "/embed_sparse", "/similarity", "/predict", "/info"), "tei"),
    **dict.fromkeys(("/v1/embed", "/v2/embed"), "cohere"),
    # The second is not served; its 404 is for clients of either.
    **dict.fromkeys(("/v2/rerank", "/v2/chat"), "cohere_openai"),
}

# https://github.com/huggingface/text-embeddings-inference, router/src/lib.rs; other client errors are Validation.
_TEI_TYPES: Mapping[int, str] = {429: "Overloaded", 503: "Unhealthy"}

# Key of a request's state.
_FORMAT_KEY = "error_format"


def use_format(request: AnyRequest, error_format: Format) -> None:
    """Render the errors of a request in this format, where its path does not tell the format."""
    request.scope["state"][_FORMAT_KEY] = error_format


def render(request: AnyRequest, error: Exception) -> Response[dict[str, Any]]:  # Any: JSON values
    """Return the response for any exception; an unexpected one is logged, and the response does not describe it."""
    status, message = _status_and_message(request, error)
    if context := current_context():
        context.error = type(error).__name__
    body = _body(_format_of(request.scope["path"], request.scope), status, message, error)
    return Response(body, status_code=status, headers=_headers(error), media_type="application/json")


def status_and_body(path: str, error: Exception) -> tuple[int, bytes]:
    """Return status and body of the response of a path to an error."""
    status, message = status_and_message(path, error)
    return status, json.dumps(_body(_format_of(path), status, message, error)).encode()


def rejection(path: str, error: RequestError) -> tuple[bytes, Mapping[str, str]]:
    """Return body and headers of the response to a request that is rejected before its route is known."""
    _, body = status_and_body(path, error)
    return body, {"Content-Type": "application/json", "Content-Length": str(len(body)), **_headers(error)}


def refuse_method(request: AnyRequest, *allowed: str) -> Response[Any]:  # Any: no body
    """Return the response to OPTIONS, and raise for another method that the path does not take."""
    if request.method != HttpMethod.OPTIONS:
        raise MethodNotAllowedException(headers={"Allow": ", ".join(allowed)})
    return Response(None, status_code=204, headers={"Allow": ", ".join(sorted({*allowed, "OPTIONS"}))})


async def with_error_event(
    request: AnyRequest, events: AsyncGenerator[bytes], *, are_events: bool = True
) -> AsyncGenerator[bytes]:
    """Yield server-sent events; an exception becomes the last one, because the status is already sent.

    If not `are_events`, the chunks are those of some other stream, and the error is a line of JSON.
    """
    last = b""
    async with aclosing(events):
        try:
            async for event in events:
                last = event
                yield event
        except Exception as error:
            status, message = _status_and_message(request, error)
            if context := current_context():
                context.error, context.late_status = type(error).__name__, status
            error_format = _format_of(request.scope["path"], request.scope)
            body = _body(error_format, status, message, error)
            if error_format == "openai_responses":
                body = _responses_event(body["error"], last)
            name = f"event: {body['type']}\n" if "type" in body else ""
            yield (f"{name}data: {json.dumps(body)}\n\n" if are_events else f"{json.dumps(body)}\n").encode()


def status_and_message(place: str, error: Exception) -> tuple[int, str]:
    """Return the status and the message for an error; `place` is the path or the gRPC method, for the log."""
    if isinstance(error, RequestError):
        return error.status, str(error)
    context = current_context()
    why = "" if context is None else f", under the request id {context.id}"
    if isinstance(error, ApplianceError):
        # The message names files and classes, which only operators may see.
        log.error("request.failed", path=place, reason=str(error))
        return error.status, f"The model failed on this request; the log says why{why}."
    # Neither the text of the exception nor its locals: both can hold what the client sent.
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    log.error("request.crashed", path=place, error=type(error).__name__, frames=frames)
    return 500, f"The server failed on this request; its log says why{why}."


def _status_and_message(request: AnyRequest, error: Exception) -> tuple[int, str]:
    path = request.url.path
    if not isinstance(error, HTTPException):
        return status_and_message(path, error)
    messages = {
        404: f"There is no route {request.method} {path}; GET / lists the routes there are.",
        405: f"The route does not take {request.method} {path}.",
        413: "The body is larger than server.max_body_bytes allows.",
    }
    return error.status_code, messages.get(error.status_code, error.detail)


def _format_of(path: str, scope: HTTPScope | None = None) -> Format:
    chosen: Format | None = None if scope is None else scope["state"].get(_FORMAT_KEY)
    path = path.rstrip("/")
    if chosen or path in _PATHS:
        return chosen or _PATHS[path]
    if _OIP_PATH.fullmatch(path) or path.startswith("/api/"):
        return "oip"
    if "/v1/messages" in path:
        return "anthropic"
    return "openai_responses" if path.endswith("/v1/responses") or "/v1/responses/" in path else "openai"


def _body(error_format: Format, status: int, message: str, error: Exception) -> dict[str, Any]:  # Any: JSON values
    if error_format == "oip":
        return {"error": message}
    if error_format == "cohere":
        return {"message": message}
    if error_format == "tei":
        return {"error": message, "error_type": _TEI_TYPES.get(status, "Validation" if status < 500 else "Backend")}
    request_error = error if isinstance(error, RequestError) else RequestError(message)
    kind = error_type(status)
    if error_format == "anthropic":
        message = anthropic_message(message, request_error.code, request_error.param)
        kind = anthropic_error_type(status)
    fields = {
        "message": message,
        "type": kind,
        "param": request_error.param,
        "code": request_error.code,
    }
    beside = {"anthropic": {"type": "error"}, "cohere_openai": {"message": message}}
    return {"error": fields, **beside.get(error_format, {})}


def error_type(status: int) -> str:
    """Return OpenAI's type of errors with a status."""
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def _responses_event(error: Mapping[str, Any], last: bytes) -> dict[str, Any]:  # Any: JSON values
    """Return the error as an event of OpenAI's responses, numbered after the `last` one that was sent.

    Source: https://platform.openai.com/docs/api-reference/responses-streaming/error
    """
    numbers = re.findall(rb'"sequence_number": ?(\d+)', last)
    return {
        "type": "error",
        "code": error["code"] or error["type"],
        "message": error["message"],
        "param": error["param"],
        "sequence_number": int(numbers[-1]) + 1 if numbers else 0,
    }


def _headers(error: Exception) -> dict[str, str]:
    if isinstance(error, UnauthenticatedError):
        # RFC 9110, section 11.6.1.
        return {"WWW-Authenticate": 'Bearer realm="appliance"'}
    if isinstance(error, RequestError):
        retry_after = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return {**error.headers, **retry_after}
    headers = (error.headers if isinstance(error, HTTPException) else None) or {}
    return {name: value for name, value in headers.items() if name.lower() == "allow"}
