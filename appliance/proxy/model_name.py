"""The name of the model in requests and answers: the upstream's there, the client's here, and no other byte changed."""

from __future__ import annotations

import msgspec

from appliance.core import json_edit, multipart, sse
from appliance.proxy.stream_usage import HiddenUsage

# Where answers say which model they are of: OpenAI's, events of its responses, events of Anthropic's messages.
_PLACES = (("model",), ("response", "model"), ("message", "model"))

_MENTION = b'"model"'


class RenamableBody:
    """A request's body, ready to be sent under any name; it is JSON unless it has the content type of a form.

    Raises:
        NotAnObjectError: it is no JSON object.
        FormError: it is no form.
    """

    def __init__(self, body: bytes, content_type: str) -> None:
        self._is_form = multipart.is_form(content_type)
        span = _span_in_form(body, content_type) if self._is_form else json_edit.span_of(body, "model")
        if span is None and not self._is_form:
            # Absent, null or there twice: the body gets a place for it first.
            body = json_edit.changed(body, {"model": _text_or_empty})
            span = json_edit.span_of(body, "model")
        self._body = body
        self._span = span

    @property
    def name(self) -> str | None:
        """The name the client sent, or None."""
        if self._span is None:
            return None
        value = self._body[self._span]
        return value.decode(errors="replace") if self._is_form else msgspec.json.decode(value) or None

    def under(self, name: str) -> bytes:
        """The body with this name in it; a form without one stays without."""
        if self._span is None:
            return self._body
        written = name.encode() if self._is_form else msgspec.json.encode(name)
        return self._body[: self._span.start] + written + self._body[self._span.stop :]


def renamed(body: bytes, name: str) -> bytes:
    """A JSON answer under another name; as it is where it has none."""
    span = _span(body) if _MENTION in body else None
    return body if span is None else body[: span.start] + msgspec.json.encode(name) + body[span.stop :]


class RenamableEvents:
    """Server-sent events under another name, as they come: lines wait for their end, and for nothing else."""

    def __init__(self, name: str, hidden: HiddenUsage | None = None) -> None:
        self._name = msgspec.json.encode(name)
        self._hidden = hidden
        self._buffer = sse.LineBuffer()
        # All chunks of an answer begin alike; what stands before and with the name is looked for as a whole,
        # so that only the first one is parsed.
        self._head, self._new_head = b"", b""
        self.is_between = True
        """No event has been begun that has not been ended."""

    @property
    def held_bytes(self) -> int:
        """Bytes of a line that has no end yet."""
        return self._buffer.held_bytes

    def feed(self, chunk: bytes) -> bytes:
        """The whole lines so far, renamed; an empty chunk is the end, and brings the rest."""
        whole = self._buffer.feed(chunk) if chunk else self._buffer.finish()
        if not whole:
            return b""
        lines = whole.splitlines(keepends=True)
        if self._hidden is not None:
            lines = [self._hidden.line(line) for line in lines]
        made = b"".join([self._line(line) for line in lines])
        if not made:
            return b""
        self.is_between = made.endswith((b"\n\n", b"\r\n\r\n", b"\r\r"))
        return made

    def _line(self, line: bytes) -> bytes:
        if self._head and line.startswith(self._head):
            return self._new_head + line[len(self._head) :]
        if _MENTION not in line or not line.startswith(sse.FIELD):
            return line
        span = _span(line[5:])
        if span is None:
            return line
        self._head = line[: 5 + span.stop]
        self._new_head = line[: 5 + span.start] + self._name
        return self._new_head + line[len(self._head) :]


def _span_in_form(body: bytes, content_type: str) -> slice | None:
    field = multipart.read_form(body, content_type).get("model")
    return None if field is None else field.span


def _text_or_empty(value: bytes | None) -> bytes:
    return value if value is not None and value.startswith(b'"') else b'""'


def _span(body: bytes) -> slice | None:
    for place in _PLACES:
        span = json_edit.span_of(body, *place)
        if span is not None:
            return span if body[span].startswith(b'"') else None
    return None
