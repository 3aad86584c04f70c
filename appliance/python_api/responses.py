"""The result of a user's method as the response that the client requested: whole, or a stream."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any

import msgspec
from pydantic import BaseModel

from appliance.core import sse
from appliance.core.errors import ApplianceError
from appliance.core.http import HOP_BY_HOP_HEADERS
from appliance.core.model import ModelResponse, Operation
from appliance.core.openai_types import Json, encode_vector, new_id, now
from appliance.python_api.types import EmbeddingRequest, ErrorResponse, GenerationRequest, Request
from appliance.python_api.user_code import describe_exception, is_stream, stream_items
from appliance.tensors.codec import LENGTH_HEADER

# What the lines of an event begin with; https://html.spec.whatwg.org/multipage/server-sent-events.html.
_SSE_FIELDS = ("data:", "event:", "id:", "retry:", ":")

# The prefix of the id, the `object` of a response and of a chunk; a rerank response has no `object`.
_KINDS: Mapping[Operation, tuple[str, str, str]] = {
    Operation.CHAT_COMPLETION: ("chatcmpl", "chat.completion", "chat.completion.chunk"),
    Operation.COMPLETION: ("cmpl", "text_completion", "text_completion"),
    Operation.EMBEDDING: ("embd", "list", "list"),
    Operation.RERANK: ("rerank", "", ""),
}

# Fields of a message whose texts are not pieces.
_WHOLE = frozenset({"role", "id", "type", "name"})


# https://www.rfc-editor.org/rfc/rfc9110#section-5.5
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

# The server sets them: they describe the body, the connection, or the server itself.
_OWN_HEADERS = HOP_BY_HOP_HEADERS | {
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "server",
    "x-request-id",
    LENGTH_HEADER,
}


class InvalidResultError(ApplianceError):
    """A method of a model written in Python returned something that is not a response."""


async def build_response(
    result: Any, request: Request, operation: Operation, name: str
) -> ModelResponse:  # Any: a user's own
    """Return the response to a request, from the model that the client calls `name`."""
    if isinstance(result, ErrorResponse):
        return _error(result)
    is_generation = isinstance(request, GenerationRequest)
    if is_stream(result) and not is_generation:
        raise InvalidResultError(f"the model answered {operation} with a stream; must return one whole answer")
    prefix, kind, chunk_kind = _KINDS[operation]
    head: Json = {"id": new_id(prefix), "created": now(), "model": name}
    envelope, chunk_envelope = ({**head, "object": each} if each else head for each in (kind, chunk_kind))
    is_chat = operation is Operation.CHAT_COMPLETION
    wants_stream = isinstance(request, GenerationRequest) and bool(request.stream)
    if is_stream(result) and wants_stream:
        return ModelResponse(_events(result, chunk_envelope, is_chat=is_chat), media_type=sse.MEDIA_TYPE)
    if is_stream(result):
        response = await _aggregate(result, envelope, chunk_envelope, is_chat=is_chat)
    else:
        response = _complete(envelope, result)
    if "error" in response:
        return _error(ErrorResponse(**response))
    if isinstance(request, GenerationRequest) and wants_stream:
        has_usage = bool((request.stream_options or {}).get("include_usage"))
        events = _split(response, chunk_kind, is_chat=is_chat, has_usage=has_usage)
        return ModelResponse(events, media_type=sse.MEDIA_TYPE)
    if isinstance(request, EmbeddingRequest) and request.encoding_format == "base64":
        response = _with_base64(response)
    return ModelResponse(msgspec.json.encode(response))


def checked_headers(headers: Mapping[Any, Any]) -> dict[str, str]:
    """Return headers that a model set, without those that are the server's."""
    checked: dict[str, str] = {}
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(str(name)) or not _HEADER_VALUE.fullmatch(str(value)):
            raise InvalidResultError(
                f"the model set the response header {str(name)[:80]!r}, whose name or value is wrong"
            )
        if str(name).lower() not in _OWN_HEADERS:
            checked[str(name).lower()] = str(value)
    return checked


def to_json(result: Any, expected: str = "an object with the fields of a response") -> Json:  # Any: a user's own
    """Return the fields of a mapping, a dataclass, or a model of pydantic's or msgspec's; arrays become lists.

    `expected` says in errors what the result must be.
    """
    try:
        fields = result.model_dump() if isinstance(result, BaseModel) else result
        converted = msgspec.to_builtins(fields, enc_hook=_convert, str_keys=True)
    except Exception as error:
        # Methods of the user's objects run in it, which raise anything.
        raise InvalidResultError(
            f"the model returned {describe_type(result)}, which is not JSON; must be {expected}: "
            f"{describe_exception(error)}"
        ) from error
    if not isinstance(converted, dict):
        raise InvalidResultError(f"the model returned {describe_type(result)}; must be {expected}")
    return converted


def describe_type(value: object) -> str:
    """Return the type of a value for messages."""
    return f"a {type(value).__name__}" if value is not None else "nothing"


def _convert(value: Any) -> Any:  # Any: what msgspec does not know
    if isinstance(value, BaseModel):
        return value.model_dump()
    # Arrays and numbers of numpy's and torch's.
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"it contains {describe_type(value)}")


def _complete(envelope: Json, result: Any) -> Json:  # Any: a user's own
    """Return a response or a chunk with the fields that its author left out; an error is returned as it is."""
    fields = to_json(result)
    if "error" in fields:
        return fields
    # Defaults of an object, such as its id, differ from chunk to chunk.
    explicit = result.model_fields_set if isinstance(result, BaseModel) else fields.keys()
    kept = {k: v for k, v in fields.items() if k not in envelope or (k in explicit and v is not None)}
    return envelope | kept


def _error(response: ErrorResponse) -> ModelResponse:
    # Only the four fields: others may hold what clients must not see.
    body = {"error": response.error.model_dump(include={"message", "type", "param", "code"})}
    return ModelResponse(msgspec.json.encode(body), response.status)


def _with_base64(embedding: Json) -> Json:
    """Return the response to an embedding request with its vectors, as far as they are lists, as base64."""
    data = embedding.get("data", [])
    if not isinstance(data, list) or not all(isinstance(each, dict) for each in data):
        raise InvalidResultError("the model returned an embedding whose data is not a list of objects")
    try:
        encoded = [
            {
                **each,
                "embedding": encode_vector(vector) if isinstance(vector := each.get("embedding"), list) else vector,
            }
            for each in data
        ]
    except ValueError as error:
        raise InvalidResultError(f"the model returned a vector that is not a list of numbers: {error}") from error
    return {**embedding, "data": encoded}


async def _events(stream: Any, envelope: Json, *, is_chat: bool) -> AsyncGenerator[bytes]:  # Any: a user's own
    """Yield the items of a user's stream as server-sent events; closing it closes the stream.

    Choices without a finish reason get one at the end, unless the user yields events of their own or an error.
    """
    head, finished, is_ours = envelope, dict[int, bool](), True
    async with aclosing(stream_items(stream)) as items:
        async for item in items:
            if isinstance(item, str) and item.startswith(_SSE_FIELDS):
                if item.strip().encode() == sse.DONE_EVENT.strip():
                    break
                is_ours = is_ours and item.startswith(":")
                yield item.rstrip("\n").encode() + sse.SUFFIX
            else:
                chunk = _complete(envelope, _decode(item) if isinstance(item, str) else item)
                is_ours = is_ours and "error" not in chunk
                head = {name: value for name, value in chunk.items() if name != "usage"}
                choices = chunk.get("choices") or ()
                for position, choice in enumerate(each for each in choices if isinstance(each, dict)):
                    index = choice.get("index", position)
                    finished[index] = finished.get(index, False) or choice.get("finish_reason") is not None
                yield sse.json_event(chunk)
    if is_ours:
        empty: Json = {"delta": {}} if is_chat else {"text": ""}
        for index in (index for index, is_finished in (finished or {0: False}).items() if not is_finished):
            last = {"index": index, **empty, "logprobs": None, "finish_reason": "stop"}
            yield sse.json_event({**head, "choices": [last]})
    yield sse.DONE_EVENT


async def _split(response: Json, kind: str, *, is_chat: bool, has_usage: bool) -> AsyncGenerator[bytes]:
    """Yield a whole response as the events of a stream, whose `object` is `kind`."""
    head = {**response, "object": kind}
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


async def _aggregate(stream: Any, envelope: Json, chunk_envelope: Json, *, is_chat: bool) -> Json:  # Any: a user's own
    """Return the response that the chunks of a stream add up to; an error among them instead, if there is one."""
    response, choices = dict(envelope), dict[int, Json]()
    async with aclosing(stream_items(stream)) as items:
        async for item in items:
            for piece in _chunks(item):
                chunk = _complete(chunk_envelope, piece)
                if "error" in chunk:
                    return chunk
                response |= {k: v for k, v in chunk.items() if k not in {"choices", "object"} and v is not None}
                for position, choice in enumerate(chunk.get("choices") or ()):
                    _add_choice(choices, choice, position)
    return {**response, "choices": [_finished(choice, is_chat=is_chat) for _, choice in sorted(choices.items())]}


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


def _add_choice(choices: dict[int, Json], piece: Json, position: int) -> None:
    """Add what a chunk has of a choice: message, text and log probabilities come in pieces, all else at once."""
    index = piece.get("index", position)
    empty: Json = {"index": index, "logprobs": None, "finish_reason": None, "delta": {"tool_calls": []}}
    choice = choices.setdefault(index, empty)
    for name, value in piece.items():
        if value is not None:
            choice[name] = _joined(choice.get(name), value) if name in {"delta", "logprobs", "text"} else value


def _joined(earlier: Any, later: Any, name: str = "") -> Any:  # Any: JSON values
    """Join two values: texts and lists are concatenated, mappings joined key by key, otherwise the later one wins."""
    if earlier is None or later is None:
        return later if earlier is None else earlier
    if isinstance(earlier, str) and isinstance(later, str):
        return earlier if name in _WHOLE else earlier + later
    if isinstance(earlier, list) and isinstance(later, list):
        return _joined_calls(earlier, later) if name == "tool_calls" else earlier + later
    if isinstance(earlier, dict) and isinstance(later, dict):
        return earlier | {key: _joined(earlier.get(key), value, key) for key, value in later.items()}
    return later


def _joined_calls(earlier: list[Json], later: list[Json]) -> list[Json]:
    """Join tool calls: the name of each comes at once, its arguments in pieces."""
    calls = {call["index"]: call for call in earlier}
    for piece in later:
        index = piece.get("index", len(calls))
        calls[index] = _joined(calls.get(index), {**piece, "index": index})
    return list(calls.values())


def _finished(choice: Json, *, is_chat: bool) -> Json:
    message = {"role": "assistant", "content": None, **choice.pop("delta")}
    choice["finish_reason"] = choice["finish_reason"] or "stop"
    if not is_chat:
        return {"text": "", **choice}
    if calls := message.pop("tool_calls"):
        message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in calls]
    return {**choice, "message": message}
