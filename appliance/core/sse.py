"""Server-sent events: one reader and one writer.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import msgspec

from appliance.core.errors import GatewayError

MEDIA_TYPE = "text/event-stream"

FIELD = b"data:"
PREFIX = b"data: "
SUFFIX = b"\n\n"

# OpenAI's last event; a stream may also simply end.
DONE = b"[DONE]"
DONE_EVENT = PREFIX + DONE + SUFFIX

# A comment, which clients ignore; it keeps proxies on the way from closing a silent connection.
KEEP_ALIVE = b": keep-alive\n\n"


def event(data: bytes, name: str = "") -> bytes:
    """Return one event; `data` has no line breaks."""
    head = f"event: {name}\n".encode() if name else b""
    return head + PREFIX + data + SUFFIX


def json_event(value: object) -> bytes:
    """Return one event whose data is the JSON of a value."""
    return PREFIX + msgspec.json.encode(value) + SUFFIX


def data_lines(events: bytes) -> Iterator[bytes]:
    """Yield the data of each line of some whole events."""
    return (line[len(FIELD) :] for line in events.splitlines() if line.startswith(FIELD))


class LineBuffer:
    """Cuts a stream of bytes after line ends, however its chunks are split; takes linear time."""

    def __init__(self) -> None:
        self.held_bytes = 0
        """Bytes of the last line, which has no end yet."""
        self._held: list[bytes] = []
        self._may_continue = False

    def feed(self, chunk: bytes) -> bytes:
        if b"\n" not in chunk and b"\r" not in chunk and not self._may_continue:
            # A long line, such as an image, is joined once, at its end.
            self._held.append(chunk)
            self.held_bytes += len(chunk)
            return b""
        text = b"".join((*self._held, chunk))
        # A carriage return ends a line by itself, unless a line feed follows.
        end = max(text.rfind(b"\n"), text.rfind(b"\r", 0, -1)) + 1
        self._held, self.held_bytes = [text[end:]], len(text) - end
        self._may_continue = text.endswith(b"\r")
        return text[:end]

    def finish(self) -> bytes:
        """Return the last line, which has no end or may have half of one."""
        rest = b"".join(self._held)
        self._held, self.held_bytes, self._may_continue = [], 0, False
        return rest


class EventReader:
    """Reads the data of events out of chunks; comments, names, ids and retry times are skipped.

    Without `has_events` the stream has a value on each line, and no events.

    Raises:
        GatewayError: an event or a line has more than `max_bytes`.
    """

    def __init__(self, max_bytes: int, *, has_events: bool = True) -> None:
        self._max_bytes = max_bytes
        self._has_events = has_events
        self._buffer = LineBuffer()
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        for line in self._buffer.feed(chunk).splitlines():
            if not self._has_events:
                yield line
            elif line.startswith(FIELD):
                self._data.append(line[len(FIELD) :].removeprefix(b" "))
                self._data_bytes += len(line)
                self._require_room(self._data_bytes)
            elif not line and self._data:
                yield b"\n".join(self._data)
                self._data, self._data_bytes = [], 0
        self._require_room(self._buffer.held_bytes)

    def finish(self) -> Iterator[bytes]:
        """Yield the data of a last event without its blank line: the standard drops it, but real servers send it so."""
        return self.feed(SUFFIX)

    def _require_room(self, size: int) -> None:
        if size > self._max_bytes:
            raise GatewayError(
                "The target's stream has an event that is too long.",
                detail=f"an event of its stream is longer than {self._max_bytes} bytes; "
                "set max_response_bytes where that is right",
            )


async def read_events(
    stream: AsyncGenerator[bytes], max_bytes: int, *, has_events: bool = True
) -> AsyncGenerator[bytes]:
    """Yield what `EventReader` reads; closing it closes the stream."""
    reader = EventReader(max_bytes, has_events=has_events)
    async with aclosing(stream):
        async for chunk in stream:
            for data in reader.feed(chunk):
                yield data
        for data in reader.finish():
            yield data


async def read_json(
    stream: AsyncGenerator[bytes], *, has_events: bool, max_bytes: int
) -> AsyncGenerator[Any]:  # Any: JSON values
    """Yield the JSON of each event, or of each line where the stream has none; closing it closes the stream.

    Source of lines: https://github.com/ndjson/ndjson-spec

    Raises:
        GatewayError: an event is not JSON, or has more than `max_bytes`.
    """
    async with aclosing(read_events(stream, max_bytes, has_events=has_events)) as events:
        async for event_data in events:
            data = event_data.strip()
            if data == DONE:
                return
            if not data:
                continue
            try:
                value = json.loads(data.decode("utf-8", "replace"))
            except (ValueError, RecursionError) as error:
                raise GatewayError(f"The target's stream has an event that is not JSON: {error}") from error
            yield value
