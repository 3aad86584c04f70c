"""
Streams of JSON out of bytes: server-sent events, or one object a line.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html and https://github.com/ndjson/ndjson-spec
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from appliance.errors import GatewayError

# OpenAI's end of a stream; a stream may also simply end.
_DONE = "[DONE]"


async def json_events(stream: AsyncGenerator[bytes], *, is_sse: bool) -> AsyncGenerator[Any]:  # Any: JSON values
    """
    The JSON of each event, however the bytes are cut; closing it closes the stream.

    Raises:
        GatewayError: an event is not JSON.
    """
    async with aclosing(stream), aclosing(_sse(stream) if is_sse else _lines(stream)) as texts:
        async for text in texts:
            if text.strip() == _DONE:
                return
            if text.strip():
                yield _decoded(text)


def _decoded(text: str) -> Any:  # Any: JSON values
    try:
        return json.loads(text)
    except ValueError as error:
        raise GatewayError(f"The target's stream has an event that is no JSON: {error}") from error


async def _sse(stream: AsyncIterator[bytes]) -> AsyncGenerator[str]:
    """
    The data of each event; comments, names, numbers and waits are skipped.
    """
    data: list[str] = []
    async with aclosing(_lines(stream)) as lines:
        async for line in lines:
            if not line:
                if data:
                    yield "\n".join(data)
                data = []
            elif line.startswith("data:"):
                data.append(line[5:].removeprefix(" "))
    # The standard drops an event without its blank line; real servers forget it at the end.
    if data:
        yield "\n".join(data)


async def _lines(stream: AsyncIterator[bytes]) -> AsyncGenerator[str]:
    """
    Whole lines without their ends; a character is never cut, because a line's end is a byte of its own in UTF-8.
    """
    rest = b""
    async for piece in stream:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")
