"""The usage of streams: asked for on behalf of clients that did not ask, and taken out of what they get.

Source: https://platform.openai.com/docs/api-reference/chat/streaming: with `stream_options.include_usage` a last chunk
without choices has the usage, and all others have null for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from appliance.core import json_edit, sse
from appliance.core.model import Operation

OPERATIONS = frozenset({Operation.CHAT_COMPLETION, Operation.COMPLETION})
"""
What has the option; streams of responses and messages have their usage always.
"""

OPTION = "stream_options"

_MENTION = b'"usage"'
_NULL = b"null"
_NONE = msgspec.Raw(b"")


class _Options(msgspec.Struct):
    include_usage: bool | None = None


class _Asked(msgspec.Struct):
    stream: bool | None = None
    stream_options: _Options | None = None


class _Chunk(msgspec.Struct):
    choices: Sequence[msgspec.Raw] | None = None
    usage: msgspec.Raw = _NONE


def asking(body: bytes) -> bytes | None:
    """The request with its usage asked for; None where it is no stream, asks already, or has options that are none."""
    if b'"stream"' not in body:
        return None
    try:
        asked = msgspec.json.decode(body, type=_Asked)
    except (ValueError, RecursionError):
        # The upstream says what is wrong with it.
        return None
    if not asked.stream or (asked.stream_options is not None and asked.stream_options.include_usage):
        return None
    return json_edit.changed(body, {OPTION: json_edit.lay({"include_usage": True})})


class HiddenUsage:
    """Takes out of the lines of a stream what was asked for here; `tell` gets each line that had a usage."""

    def __init__(self, tell: Callable[[bytes], None]) -> None:
        self._tell = tell
        self._is_within = False
        self._skips_end = False

    def line(self, line: bytes) -> bytes:
        """What the client gets of a line, its end included."""
        is_end = line in (b"\n", b"\r\n", b"\r")
        if is_end and self._skips_end:
            self._skips_end = False
            return b""
        made = self._without(line) if _MENTION in line and line.startswith(sse.FIELD) else line
        if not made:
            # Its blank line goes with it, unless other lines of the event have gone out.
            self._skips_end = not self._is_within
            return b""
        self._is_within = not is_end
        return made

    def _without(self, line: bytes) -> bytes:
        try:
            chunk = msgspec.json.decode(line[5:], type=_Chunk)
        except (ValueError, RecursionError):
            return line
        usage = bytes(chunk.usage)
        if usage == _NULL:
            try:
                return line[:5] + json_edit.changed(line[5:], {"usage": json_edit.drop})
            except json_edit.NotAnObjectError:
                # It has too many members to be a chunk of anybody's.
                return line
        if usage and chunk.choices is not None and not chunk.choices:
            self._tell(line)
            return b""
        # An upstream that has it beside choices says it unasked.
        return line
