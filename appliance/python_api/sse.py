"""Streams of users as server-sent events, or gathered into one answer, and answers as streams."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import msgspec

from appliance.core import sse
from appliance.python_api.invoke import items
from appliance.python_api.response_envelope import ResponseEnvelope
from appliance.python_api.serialization import Json, ModelFaultError
from appliance.python_api.stream_aggregator import StreamAggregator

# What the lines of an event begin with; https://html.spec.whatwg.org/multipage/server-sent-events.html.
_FIELDS = ("data:", "event:", "id:", "retry:", ":")


async def events(stream: Any, frame: ResponseEnvelope) -> AsyncGenerator[bytes]:  # Any: whatever a user returned
    """The events of a stream that a user returned, with OpenAI's end; closing it closes the stream.

    Raises:
        ModelFaultError: an item is no chunk.
    """
    async with aclosing(items(stream)) as yielded:
        async for item in yielded:
            if isinstance(item, str) and item.startswith(_FIELDS):
                if item.strip().encode() == sse.DONE_EVENT.strip():
                    break
                yield item.rstrip("\n").encode() + sse.SUFFIX
            else:
                yield sse.json_event(frame.around_chunk(_decoded(item) if isinstance(item, str) else item))
    yield sse.DONE_EVENT


async def gathered(stream: Any, frame: ResponseEnvelope, *, is_chat: bool) -> Json:  # Any: as above
    """The one answer that a stream comes to, for a client that wants it whole; an error where the stream has one.

    Raises:
        ModelFaultError: an item is no chunk.
    """
    whole = StreamAggregator(frame.whole, is_chat=is_chat)
    async with aclosing(items(stream)) as yielded:
        async for item in yielded:
            for chunk in _chunks(item):
                made = frame.around_chunk(chunk)
                if "error" in made:
                    return made
                whole.take(made)
    return whole.answer()


async def parted(answer: Json, frame: ResponseEnvelope, *, is_chat: bool, wants_usage: bool) -> AsyncGenerator[bytes]:
    """A whole answer as the events of a stream, for a client that wants one."""
    head = {**answer, "object": frame.chunk["object"]}
    head.pop("usage", None)
    for choice in answer.get("choices", ()):
        for piece in _deltas(choice) if is_chat else (choice,):
            yield sse.json_event({**head, "choices": [piece]})
    if wants_usage and answer.get("usage"):
        yield sse.json_event({**head, "choices": [], "usage": answer["usage"]})
    yield sse.DONE_EVENT


def _deltas(choice: Json) -> Iterator[Json]:
    """What is said, and then why it ended."""
    message = {name: value for name, value in (choice.get("message") or {}).items() if value is not None}
    if "tool_calls" in message:
        message["tool_calls"] = [{"index": index, **call} for index, call in enumerate(message["tool_calls"])]
    frame = {"index": choice.get("index", 0), "logprobs": None}
    yield {**frame, "delta": message, "logprobs": choice.get("logprobs"), "finish_reason": None}
    yield {**frame, "delta": {}, "finish_reason": choice.get("finish_reason") or "stop"}


def _chunks(item: Any) -> Iterator[Any]:  # Any: whatever a user yielded
    if not isinstance(item, str):
        yield item
    elif not item.startswith(_FIELDS):
        yield _decoded(item)
    else:
        yield from (_decoded(data) for data in sse.data_lines(item.encode()) if data.strip() != sse.DONE)


def _decoded(text: str | bytes) -> Json:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ModelFaultError(
            "the model yielded text that is neither a server-sent event nor the JSON of a chunk; "
            "yield objects such as ChatCompletionChunk"
        ) from error
