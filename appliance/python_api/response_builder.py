"""Whatever a user's method returned, as the reply the client wants: whole, or a stream."""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.core import sse
from appliance.core.model import ModelResponse, Operation
from appliance.python_api.error_response import ErrorResponse
from appliance.python_api.invoke import is_stream
from appliance.python_api.request_types import EmbeddingRequest, GenerationRequest, Request
from appliance.python_api.response_envelope import ResponseEnvelope
from appliance.python_api.serialization import Json, ModelFaultError, with_base64
from appliance.python_api.sse import events, gathered, parted


async def reply(returned: Any, request: Request, operation: Operation, name: str) -> ModelResponse:  # Any: a user's own
    """The reply of the model `name` to a request.

    Raises:
        ModelFaultError: what was returned is no answer.
    """
    if isinstance(returned, ErrorResponse):
        return _refused(returned)
    if is_stream(returned) and not isinstance(request, GenerationRequest):
        raise ModelFaultError(f"the model answered {operation} with a stream; must return one whole answer")
    frame = ResponseEnvelope.of(operation, request.model or name)
    wants_stream = isinstance(request, GenerationRequest) and bool(request.stream)
    if is_stream(returned) and wants_stream:
        return ModelResponse(events(returned, frame), media_type=sse.MEDIA_TYPE)
    if is_stream(returned):
        answer = await gathered(returned, frame, is_chat=operation is Operation.CHAT_COMPLETION)
    else:
        answer = frame.around_whole(returned)
    if "error" in answer:
        return _refused(ErrorResponse(**answer))
    if isinstance(request, GenerationRequest) and wants_stream:
        return _streamed(answer, frame, request, is_chat=operation is Operation.CHAT_COMPLETION)
    if isinstance(request, EmbeddingRequest) and request.encoding_format == "base64":
        answer = with_base64(answer)
    return ModelResponse(msgspec.json.encode(answer))


def _streamed(answer: Json, frame: ResponseEnvelope, request: GenerationRequest, *, is_chat: bool) -> ModelResponse:
    wants_usage = bool((request.stream_options or {}).get("include_usage"))
    return ModelResponse(parted(answer, frame, is_chat=is_chat, wants_usage=wants_usage), media_type=sse.MEDIA_TYPE)


def _refused(response: ErrorResponse) -> ModelResponse:
    # The four fields alone: whatever else an exception brought along is nobody's business.
    body = {"error": response.error.model_dump(include={"message", "type", "param", "code"})}
    return ModelResponse(msgspec.json.encode(body), response.status)
