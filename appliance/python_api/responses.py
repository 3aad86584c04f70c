"""The result of a user's method as the response that the client requested: whole, or a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import msgspec

from appliance.core import sse
from appliance.core.model import ModelResponse, Operation
from appliance.core.openai_types import Json
from appliance.python_api.serialization import InvalidResultError, ResponseEnvelope, with_base64
from appliance.python_api.types import EmbeddingRequest, ErrorResponse, GenerationRequest, Request
from appliance.python_api.user_code import is_stream, stream_items

# What the lines of an event begin with; https://html.spec.whatwg.org/multipage/server-sent-events.html.
_SSE_FIELDS = ("data:", "event:", "id:", "retry:", ":")


async def build_response(
    result: Any, request: Request, operation: Operation, name: str
) -> ModelResponse:  # Any: a user's own
    """Return the response of the model `name` to a request."""
    if isinstance(result, ErrorResponse):
        return _error(result)
    is_generation = isinstance(request, GenerationRequest)
    if is_stream(result) and not is_generation:
        raise InvalidResultError(f"the model answered {operation} with a stream; must return one whole answer")
    envelope = ResponseEnvelope.new(operation, request.model or name)
    is_chat = operation is Operation.CHAT_COMPLETION
    wants_stream = isinstance(request, GenerationRequest) and bool(request.stream)
    if is_stream(result) and wants_stream:
        return ModelResponse(_events(result, envelope), media_type=sse.MEDIA_TYPE)
    if is_stream(result):
        response = await _aggregate(result, envelope, is_chat=is_chat)
    else:
        response = envelope.complete_response(result)
    if "error" in response:
        return _error(ErrorResponse(**response))
    if isinstance(request, GenerationRequest) and wants_stream:
        has_usage = bool((request.stream_options or {}).get("include_usage"))
        return ModelResponse(
            _split(response, envelope, is_chat=is_chat, has_usage=has_usage), media_type=sse.MEDIA_TYPE
        )
    if isinstance(request, EmbeddingRequest) and request.encoding_format == "base64":
        response = with_base64(response)
    return ModelResponse(msgspec.json.encode(response))


def _error(response: ErrorResponse) -> ModelResponse:
    # Only the four fields: others may hold what clients must not see.
    body = {"error": response.error.model_dump(include={"message", "type", "param", "code"})}
    return ModelResponse(msgspec.json.encode(body), response.status)


async def _events(stream: Any, envelope: ResponseEnvelope) -> AsyncGenerator[bytes]:  # Any: a user's own
    """Yield the items of a user's stream as server-sent events; closing it closes the stream."""
    async with aclosing(stream_items(stream)) as items:
        async for item in items:
            if isinstance(item, str) and item.startswith(_SSE_FIELDS):
                if item.strip().encode() == sse.DONE_EVENT.strip():
                    break
                yield item.rstrip("\n").encode() + sse.SUFFIX
            else:
                yield sse.json_event(envelope.complete_chunk(_decode(item) if isinstance(item, str) else item))
    yield sse.DONE_EVENT


async def _split(
    response: Json, envelope: ResponseEnvelope, *, is_chat: bool, has_usage: bool
) -> AsyncGenerator[bytes]:
    """Yield a whole response as the events of a stream."""
    head = {**response, "object": envelope.chunk["object"]}
    head.pop("usage", None)
    for choice in response.get("choices", ()):
        for piece in _deltas(choice) if is_chat else (choice,):
            yield sse.json_event({**head, "choices": [piece]})
    if has_usage and response.get("usage"):
        yield sse.json_event({**head, "choices": [], "usage": response["usage"]})
    yield sse.DONE_EVENT


def _deltas(choice: Json) -> Iterator[Json]:
    """Yield the message, then the finish reason."""
    message = {name: value for name, value in (choice.get("message") or {}).items() if value is not None}
    if "tool_calls" in message:
        message["tool_calls"] = [{"index": index, **call} for index, call in enumerate(message["tool_calls"])]
    head = {"index": choice.get("index", 0), "logprobs": None}
    yield {**head, "delta": message, "logprobs": choice.get("logprobs"), "finish_reason": None}
    yield {**head, "delta": {}, "finish_reason": choice.get("finish_reason") or "stop"}


async def _aggregate(stream: Any, envelope: ResponseEnvelope, *, is_chat: bool) -> Json:  # Any: a user's own
    """Return the response that the chunks of a stream add up to; an error among them instead, if there is one."""
    aggregator = _Aggregator(envelope.response, is_chat=is_chat)
    async with aclosing(stream_items(stream)) as items:
        async for item in items:
            for chunk in _chunks(item):
                completed = envelope.complete_chunk(chunk)
                if "error" in completed:
                    return completed
                aggregator.add(completed)
    return aggregator.response()


def _chunks(item: Any) -> Iterator[Any]:  # Any: a user's own
    if not isinstance(item, str):
        yield item
    elif not item.startswith(_SSE_FIELDS):
        yield _decode(item)
    else:
        yield from (_decode(data) for data in sse.data_lines(item.encode()) if data.strip() != sse.DONE)


def _decode(text: str | bytes) -> Json:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise InvalidResultError(
            "the model yielded text that is neither a server-sent event nor the JSON of a chunk; "
            "yield objects such as ChatCompletionChunk"
        ) from error


class _Aggregator:
    """Adds up the chunks of one response."""

    def __init__(self, envelope: Json, *, is_chat: bool) -> None:
        self._response = dict(envelope)
        self._is_chat = is_chat
        self._choices: dict[int, Json] = {}

    def add(self, chunk: Json) -> None:
        fields = {name: value for name, value in chunk.items() if name != "choices" and value is not None}
        self._response |= fields | {"object": self._response["object"]}
        for position, piece in enumerate(chunk.get("choices") or ()):
            index = piece.get("index", position)
            choice = self._choices.setdefault(index, {"index": index, "logprobs": None, "finish_reason": None})
            _add_choice(choice, piece)

    def response(self) -> Json:
        choices = [self._finished(choice) for _, choice in sorted(self._choices.items())]
        return {**self._response, "choices": choices}

    def _finished(self, choice: Json) -> Json:
        delta = choice.pop("delta", {})
        choice["finish_reason"] = choice["finish_reason"] or "stop"
        if not self._is_chat:
            return {"text": "", **choice}
        calls = delta.pop("tool_calls", None)
        message = {"role": "assistant", "content": None, **delta}
        if calls:
            message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in calls]
        return {**choice, "message": message}


def _add_choice(choice: Json, piece: Json) -> None:
    for name, value in piece.items():
        if name == "delta":
            _add_delta(choice.setdefault("delta", {}), value or {})
        elif name == "logprobs":
            choice[name] = _joined(choice[name], value)
        elif name == "text":
            choice[name] = choice.get(name, "") + (value or "")
        elif value is not None:
            choice[name] = value


def _add_delta(message: Json, delta: Json) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            for call in value or ():
                _add_call(message.setdefault("tool_calls", []), call)
        elif name == "role":
            message.setdefault("role", value)
        else:
            message[name] = _joined(message.get(name), value)


def _add_call(calls: list[Json], piece: Json) -> None:
    """Add a piece of a tool call: its name comes at once, its arguments in pieces."""
    index = piece.get("index", len(calls))
    call = next((each for each in calls if each["index"] == index), None)
    if call is None:
        calls.append({**piece, "index": index})
        return
    function, more = call.setdefault("function", {}), piece.get("function") or {}
    function["arguments"] = (function.get("arguments") or "") + (more.get("arguments") or "")
    call.update({name: value for name, value in piece.items() if name != "function" and value is not None})


def _joined(earlier: Any, later: Any) -> Any:  # Any: JSON values
    """Join two values: texts and lists are concatenated, mappings joined key by key, otherwise the later one wins."""
    if earlier is None or later is None:
        return later if earlier is None else earlier
    if isinstance(earlier, str) and isinstance(later, str):
        return earlier + later
    if isinstance(earlier, list) and isinstance(later, list):
        return earlier + later
    if isinstance(earlier, dict) and isinstance(later, dict):
        return earlier | {name: _joined(earlier.get(name), value) for name, value in later.items()}
    return later
