"""Streams of JSON out of bytes: server-sent events, or one object a line.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html and https://github.com/ndjson/ndjson-spec
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from appliance.core.errors import GatewayError

# OpenAI's end of a stream; a stream may also simply end.
_DONE = "[DONE]"


async def json_events(
    stream: AsyncGenerator[bytes], *, is_sse: bool, longest: int
) -> AsyncGenerator[Any]:  # Any: JSON values
    """The JSON of each event, however the bytes are cut; closing it closes the stream.

    Raises:
        GatewayError: an event is not JSON, or has more than `longest` bytes.
    """
    async with aclosing(stream), aclosing(_sse(stream, longest) if is_sse else _lines(stream, longest)) as texts:
        async for text in texts:
            if text.strip() == _DONE:
                return
            if text.strip():
                yield _decoded(text)


def _decoded(text: str) -> Any:  # Any: JSON values
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GatewayError(f"The target's stream has an event that is no JSON: {error}") from error


async def _sse(stream: AsyncIterator[bytes], longest: int) -> AsyncGenerator[str]:
    """The data of each event; comments, names, numbers and waits are skipped."""
    data: list[str] = []
    size = 0
    async with aclosing(_lines(stream, longest)) as lines:
        async for line in lines:
            if not line:
                if data:
                    yield "\n".join(data)
                data, size = [], 0
            elif line.startswith("data:"):
                data.append(line[5:].removeprefix(" "))
                size += len(line)
                _require_room(size, longest)
    # The standard drops an event without its blank line; real servers forget it at the end.
    if data:
        yield "\n".join(data)


async def _lines(stream: AsyncIterator[bytes], longest: int) -> AsyncGenerator[str]:
    """Whole lines without their ends; a character is never cut, because a line's end is a byte of its own in UTF-8."""
    rest: list[bytes] = []
    size = 0
    async for piece in stream:
        rest.append(piece)
        size += len(piece)
        if b"\n" in piece:
            *lines, last = b"".join(rest).split(b"\n")
            rest, size = [last], len(last)
            for line in lines:
                yield line.removesuffix(b"\r").decode("utf-8", "replace")
        _require_room(size, longest)
    if whole := b"".join(rest):
        yield whole.decode("utf-8", "replace")


def _require_room(size: int, longest: int) -> None:
    if size > longest:
        raise GatewayError(
            "The target's stream has an event that is too long.",
            detail=f"an event of its stream is longer than {longest} bytes; set max_response_bytes where that is right",
        )
