"""Streams of response events: the response objects in them are changed, all other bytes stay.

Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import msgspec

from appliance.core import sse
from appliance.core.openai_types import Json

LAST = frozenset({"response.completed", "response.incomplete", "response.failed"})
"""Types of the events that end a stream; each has the whole response."""

# A quote within a text is escaped, so this is a key.
_MENTION = b'"response":'

Change = Callable[[str, Json], Awaitable[Json]]
"""Returns the response of an event of this type as clients get it."""


async def changed(stream: AsyncGenerator[bytes], change: Change) -> AsyncGenerator[bytes]:
    """Yield a model's stream with its responses changed; closing it closes the stream."""
    buffer = sse.LineBuffer()
    async with aclosing(stream):
        async for chunk in stream:
            if lines := buffer.feed(chunk):
                yield await _changed_lines(lines, change) if _MENTION in lines else lines
        if rest := buffer.finish():
            yield await _changed_lines(rest, change)


async def stream_of(response: Json) -> AsyncGenerator[bytes]:
    """Yield the events of a response that is completed, and has no texts to stream."""
    begun = {**response, "status": "in_progress", "completed_at": None, "output": [], "usage": None}
    items: list[Json] = [
        {"type": f"response.output_item.{name}", "output_index": index, "item": item}
        for index, item in enumerate(response["output"])
        for name in ("added", "done")
    ]
    first: Json = {"type": "response.created", "response": begun}
    for number, event in enumerate((first, *items, {"type": "response.completed", "response": response})):
        yield sse.event(msgspec.json.encode({**event, "sequence_number": number}), event["type"])


async def _changed_lines(lines: bytes, change: Change) -> bytes:
    return b"".join([await _changed_line(line, change) for line in lines.splitlines(keepends=True)])


async def _changed_line(line: bytes, change: Change) -> bytes:
    if _MENTION not in line or not line.startswith(sse.FIELD):
        return line
    data = line[len(sse.FIELD) :]
    event = decode(data)
    if event is None or not isinstance(event.get("response"), dict):
        return line
    event["response"] = await change(str(event.get("type")), event["response"])
    return sse.PREFIX + msgspec.json.encode(event) + data[len(data.rstrip()) :]


def decode(data: bytes) -> Json | None:
    """Return an event; None if the data is something else."""
    try:
        return msgspec.json.decode(data, type=Json)
    except (ValueError, RecursionError):
        return None
