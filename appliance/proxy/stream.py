"""An upstream's stream on its way to the client."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterable

import msgspec

from appliance.core import json_edit, sse
from appliance.core.concurrency import off_loop
from appliance.core.errors import GatewayError
from appliance.core.rewrite import MODEL_MENTION, model_span
from appliance.over_chat import Translator
from appliance.proxy.response import UpstreamResponse

_USAGE_MENTION = b'"usage"'
_NULL_USAGE_AT_END = re.compile(rb'"usage"\s*+:\s*+null(\s*+\}\s*+)\Z')
_EMPTY_LIST = re.compile(rb"\[\s*+\]")


class _Chunk(msgspec.Struct):
    """The members of a chunk that decide about its usage, as they are written."""

    usage: msgspec.Raw = msgspec.Raw()
    choices: msgspec.Raw = msgspec.Raw()


_LINE_ENDS = (b"\n", b"\r\n", b"\r")
_EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")


async def relay_events(
    response: UpstreamResponse,
    model: str,
    keep_alive_seconds: float | None,
    on_usage: Callable[[bytes], None] | None = None,
) -> AsyncGenerator[bytes]:
    """Yield server-sent events as they come, rewritten by an `EventRewriter`.

    Between two events a comment follows each `keep_alive_seconds` of silence; None sends none.

    Raises:
        GatewayError: the response ends early; a partial event is completed first, so that another one can follow.
    """
    rewriter = EventRewriter(model, on_usage)
    try:
        while (piece := await response.read_piece(keep_alive_seconds)) != b"":
            if piece is None:
                rewritten = sse.KEEP_ALIVE if rewriter.is_between_events else b""
            else:
                rewritten = await off_loop(rewriter.held_bytes + len(piece), rewriter.feed, piece)
                response.require_room(rewriter.held_bytes)
            if rewritten:
                yield rewritten
        if rest := rewriter.finish():
            yield rest
    except GatewayError:
        # Half a line was never sent, but complete lines of an event may have been.
        if not rewriter.is_between_events:
            yield b"\n"
        raise
    finally:
        response.close()


async def relay_translated(
    response: UpstreamResponse, translator: Translator, keep_alive_seconds: float | None
) -> AsyncGenerator[bytes]:
    """Yield the events of the client's protocol for a chat completion, streamed or whole; comments as `relay_events`.

    Raises:
        GatewayError: the response ends early, or is no chat completion.
    """
    if not response.is_event_stream:
        body = await response.read()
        yield await off_loop(len(body), translator.feed, body)
        yield translator.finish()
        return
    reader = sse.EventReader(response.max_bytes)
    try:
        while (piece := await response.read_piece(keep_alive_seconds)) != b"":
            if piece is None:
                yield sse.KEEP_ALIVE
            elif events := await off_loop(len(piece), _translate, translator, reader.feed(piece)):
                yield events
        yield _translate(translator, reader.finish()) + translator.finish()
    finally:
        response.close()


def _translate(translator: Translator, chunks: Iterable[bytes]) -> bytes:
    return b"".join([translator.feed(chunk) for chunk in chunks if chunk.strip() != sse.DONE])


class EventRewriter:
    """Rewrites server-sent events line by line: with the client's name of the model, without usage it did not ask for.

    With `on_usage`, the usage was requested on behalf of the client: its event is removed and passed to `on_usage`, and
    so is ``"usage": null`` in the others (https://platform.openai.com/docs/api-reference/chat-streaming).
    """

    def __init__(self, model: str, on_usage: Callable[[bytes], None] | None = None) -> None:
        self.is_between_events = True
        """Every event that was begun has been ended."""
        self._model = msgspec.json.encode(model)
        self._on_usage = on_usage
        self._buffer = sse.LineBuffer()
        # All chunks of a response begin alike, so only the first one is parsed: what is before the name, with the name,
        # is replaced as a whole.
        self._head, self._new_head = b"", b""
        self._is_in_event = False
        self._drops_line_end = False

    @property
    def held_bytes(self) -> int:
        """Bytes of a line that has no end yet."""
        return self._buffer.held_bytes

    def feed(self, piece: bytes) -> bytes:
        """Return the lines that are complete now, rewritten."""
        return self._rewrite(self._buffer.feed(piece))

    def finish(self) -> bytes:
        """Return the last line, which has no end, rewritten."""
        return self._rewrite(self._buffer.finish())

    def _rewrite(self, lines: bytes) -> bytes:
        split = lines.splitlines(keepends=True)
        if self._on_usage is not None:
            split = [self._without_usage(line, self._on_usage) for line in split]
        rewritten = b"".join([self._renamed(line) for line in split])
        if rewritten:
            self.is_between_events = rewritten.endswith(_EVENT_ENDS)
        return rewritten

    def _renamed(self, line: bytes) -> bytes:
        if self._head and line.startswith(self._head):
            return self._new_head + line[len(self._head) :]
        if MODEL_MENTION not in line or not line.startswith(sse.FIELD):
            return line
        offset = len(sse.FIELD)
        span = model_span(line[offset:])
        if span is None:
            return line
        self._head = line[: offset + span.stop]
        self._new_head = line[: offset + span.start] + self._model
        return self._new_head + line[len(self._head) :]

    def _without_usage(self, line: bytes, on_usage: Callable[[bytes], None]) -> bytes:
        is_line_end = line in _LINE_ENDS
        if is_line_end and self._drops_line_end:
            self._drops_line_end = False
            return b""
        if _USAGE_MENTION in line and line.startswith(sse.FIELD):
            kept = _remove_usage(line)
            if not kept:
                on_usage(line)
                # The blank line is removed too, unless other lines of the event were sent.
                self._drops_line_end = not self._is_in_event
                return b""
            line = kept
        self._is_in_event = not is_line_end
        return line


def _remove_usage(line: bytes) -> bytes:
    """Return a line of data without its null usage; empty if it has the usage of the whole stream."""
    data = line[len(sse.FIELD) :]
    try:
        chunk = msgspec.json.decode(data, type=_Chunk)
        if bytes(chunk.usage) != b"null":
            # With choices beside it, the upstream sends it without being asked.
            return b"" if chunk.usage and _EMPTY_LIST.fullmatch(bytes(chunk.choices)) else line
        mention = line.index(_USAGE_MENTION)
        before = line[:mention].rstrip()
        if (end := _NULL_USAGE_AT_END.match(line, mention)) is not None and before.endswith(b","):
            # The last member of the object, as most servers write it; its place need not be searched.
            return before[:-1].rstrip() + end[1]
        return sse.FIELD + json_edit.edit(data, {"usage": json_edit.remove})
    except (ValueError, RecursionError):
        # Not a JSON object, or one with too many members.
        return line
