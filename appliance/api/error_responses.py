"""Every error in the shape of the protocol it is an answer in.

OpenAI's is ``{"error": {"message", "type", "param", "code"}}``, the Open Inference Protocol's ``{"error": "text"}``.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import structlog
from litestar import Response
from litestar.exceptions import HTTPException

from appliance.api.disconnect import AnyRequest
from appliance.core import sse
from appliance.core.errors import ApplianceError, RequestError, UnauthenticatedError
from appliance.core.request_context import current_context

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# Where the Open Inference Protocol is spoken; reranking has a second version in Cohere's protocol too.
_INFERENCE = re.compile(r"/v2(?!/rerank$)(/.*)?|/v1/models/.+:(predict|explain)")

# https://platform.openai.com/docs/guides/error-codes; other client errors are invalid_request_error.
_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


def render(request: AnyRequest, error: Exception) -> Response[dict[str, Any]]:
    """The response for any exception; one that nobody foresaw is logged and says nothing about itself."""
    status, message = _as_response(request, error)
    if record := current_context():
        record.error = type(error).__name__
    body = _body(request.scope["path"], status, message, error)
    return Response(body, status_code=status, headers=_headers(error), media_type="application/json")


def refused(path: str, error: RequestError) -> tuple[bytes, Mapping[str, str]]:
    """Body and headers of a refusal before any route is looked for."""
    body = json.dumps(_body(path, error.status, str(error), error)).encode()
    return body, {"Content-Type": "application/json", "Content-Length": str(len(body)), **_headers(error)}


async def with_error_event(
    request: AnyRequest, events: AsyncGenerator[bytes], *, are_events: bool = True
) -> AsyncGenerator[bytes]:
    """Server-sent events, the last one an error where one ends them: the status is sent already.

    Where `are_events` is False they are pieces of some other stream, and the error is a line of JSON.
    """
    last = b""
    async with aclosing(events):
        try:
            async for event in events:
                last = event
                yield event
        except Exception as error:
            status, message = _as_response(request, error)
            if record := current_context():
                record.error, record.late_status = type(error).__name__, status
            body = _body(request.scope["path"], status, message, error)
            if "/v1/responses" in request.scope["path"]:
                body = _response_event(body["error"], last)
            data = json.dumps(body).encode()
            yield sse.event(data, body.get("type", "")) if are_events else data + b"\n"


def status_and_message(place: str, error: Exception) -> tuple[int, str]:
    """Status and message of an error in answering `place`, whatever protocol it is of."""
    if isinstance(error, RequestError):
        return error.status, str(error)
    if isinstance(error, ApplianceError):
        # Its text is for whoever runs the server: it names files and classes.
        log.error("request.failed", path=place, reason=str(error))
        return error.status, f"The model failed on this request; the log says why{_under_id()}."
    # Neither the text of the exception nor its locals: both can hold what the client said.
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    log.error("request.broke", path=place, error=type(error).__name__, frames=frames)
    return 500, f"The server failed on this request; its log says why{_under_id()}."


def _under_id() -> str:
    record = current_context()
    return "" if record is None else f", under the request id {record.id}"


def _as_response(request: AnyRequest, error: Exception) -> tuple[int, str]:
    if isinstance(error, HTTPException):
        return error.status_code, _reworded(request, error)
    return status_and_message(request.url.path, error)


def _body(path: str, status: int, message: str, error: Exception) -> dict[str, Any]:  # Any: JSON values
    if _INFERENCE.fullmatch(path):
        return {"error": message}
    word = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    call = error if isinstance(error, RequestError) else None
    body: dict[str, Any] = {
        "error": {
            "message": message,
            "type": word,
            "param": call.param if call else None,
            "code": call.code if call else None,
        }
    }
    if "/v1/messages" in path:
        # Anthropic's clients look for this word beside the error.
        body["type"] = "error"
    return body


def _response_event(error: Mapping[str, Any], last: bytes) -> dict[str, Any]:  # Any: JSON values
    """The error as an event of OpenAI's responses, numbered after the `last` one that was sent.

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
        wait = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return {**error.headers, **wait}
    if isinstance(error, HTTPException) and error.headers:
        return {name: value for name, value in error.headers.items() if name.lower() == "allow"}
    return {}


def _reworded(request: AnyRequest, error: HTTPException) -> str:
    place = f"{request.method} {request.url.path}"
    match error.status_code:
        case 404:
            return f"There is no route {place}; GET / lists the routes there are."
        case 405:
            return f"The route does not take {place}."
        case 413:
            return "The body is larger than server.max_body_bytes allows."
        case _:
            return error.detail
