"""Server-sent events, read and written."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core import sse
from appliance.core.errors import GatewayError

STREAM = b"\n".join(
    [
        b": comment",
        b"",
        b'data: {"a": "\xc3\xa9\xf0\x9f\x98\x80"}',
        b"",
        b"event: message\r",
        b"id: 7\r",
        b'data:{"b":\r',
        b"data: 2}\r",
        b"\r",
        b"retry: 10",
        b"",
        b'data:  {"c": "data: \\n\\n"}',
        b"",
        b'data: {"d": 1}\r\rdata: [3]',
        b"",
        b"",
    ]
)
DATA = ['{"a": "é😀"}'.encode(), b'{"b":\n2}', b' {"c": "data: \\n\\n"}', b'{"d": 1}', b"[3]"]


def _cut(stream: bytes, places: Sequence[int]) -> list[bytes]:
    cuts = [0, *sorted(places), len(stream)]
    return [stream[start:end] for start, end in pairwise(cuts)]


def _lines(chunks: Sequence[bytes]) -> list[bytes]:
    buffer = sse.LineBuffer()
    return [*(buffer.feed(chunk) for chunk in chunks), buffer.finish()]


def _data(chunks: Sequence[bytes], max_bytes: int = 1000) -> list[bytes]:
    reader = sse.EventReader(max_bytes)
    return [*(data for chunk in chunks for data in reader.feed(chunk)), *reader.finish()]


async def _stream(*chunks: bytes) -> AsyncGenerator[bytes]:
    for chunk in chunks:
        yield chunk


async def _json(*chunks: bytes, has_events: bool = True) -> list[Any]:
    return [value async for value in sse.read_json(_stream(*chunks), has_events=has_events, max_bytes=100)]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_are_the_same_however_chunks_are_split(places: list[int]) -> None:
    """In the middle of a character, of a line end, of a field's name."""
    assert _data(_cut(STREAM, places)) == DATA


@given(st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\r\n", b""]), max_size=30))
def test_a_line_buffer_cuts_after_line_ends_and_loses_nothing(chunks: list[bytes]) -> None:
    """Whatever comes out before the end is whole lines, and \\r\\n is not cut in two."""
    pieces = _lines(chunks)

    assert b"".join(pieces) == b"".join(chunks)
    for piece, rest in zip(pieces[:-1], range(1, len(pieces)), strict=True):
        assert not piece or piece.endswith((b"\n", b"\r"))
        assert not (piece.endswith(b"\r") and b"".join(pieces[rest:]).startswith(b"\n"))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_complete_lines_come_at_once(end: bytes) -> None:
    """Only the last line waits for its end."""
    buffer = sse.LineBuffer()

    assert buffer.feed(b"data: 1" + end + end + b"data") == b"data: 1" + end + end
    assert buffer.held_bytes == 4


def test_a_line_of_many_chunks_takes_linear_time() -> None:
    """A million chunks of a byte each, which would take hours if each were joined to those before."""
    buffer = sse.LineBuffer()

    for _ in range(1_000_000):
        assert buffer.feed(b"a") == b""

    assert buffer.held_bytes == 1_000_000
    assert buffer.feed(b"\n") == b"a" * 1_000_000 + b"\n"


def test_a_last_event_without_its_blank_line_is_read() -> None:
    """With and without an end of its line."""
    assert _data([b"data: 1"]) == [b"1"]
    assert _data([b"data: 1\r"]) == [b"1"]
    assert _data([b"data: 1\ndata: 2\n"]) == [b"1\n2"]


@pytest.mark.parametrize(
    "chunks",
    [
        [b"data: " + b"x" * 100],
        [b"data: " + b"x" * 100 + b"\n\n"],
        [b"data: " + b"x" * 40 + b"\n"] * 3,
        [b"x"] * 101,
    ],
)
def test_events_have_a_maximum_size(chunks: list[bytes]) -> None:
    """In one chunk or in many, in one line or in many."""
    with pytest.raises(GatewayError, match="too long") as caught:
        _data(chunks, max_bytes=100)

    assert "100 bytes" in caught.value.detail


async def test_json_ends_at_the_done_event() -> None:
    """OpenAI's last event; empty data is skipped."""
    assert await _json(b'data: {"a": 1}\n\ndata:\n\ndata: [DO', b"NE]\n\ndata: 2\n\n") == [{"a": 1}]


async def test_json_lines_need_no_events() -> None:
    """One value a line, with any line end, the last without one."""
    assert await _json(b'{"a": 1}\r\n\n[', b"2]\n3", has_events=False) == [{"a": 1}, [2], 3]


async def test_invalid_utf8_in_a_text_is_replaced() -> None:
    """As the standard decodes a stream."""
    assert await _json(b'data: "\xff"\n\n') == ["�"]


@pytest.mark.parametrize("data", [b"oops", b"[" * 100_000, b'{"a": '])
async def test_an_event_that_is_not_json_is_an_error(data: bytes) -> None:
    """Of the upstream, not of the client."""
    with pytest.raises(GatewayError):
        await _json(b"data: " + data + b"\n\n")


async def test_closing_a_reader_closes_the_stream() -> None:
    """Also when not all of it was read."""
    is_closed = False

    async def stream() -> AsyncGenerator[bytes]:
        nonlocal is_closed
        try:
            yield b"data: 1\n\ndata: 2\n\n"
        finally:
            is_closed = True

    events = sse.read_events(stream(), 100)
    assert await anext(events) == b"1"
    await events.aclose()

    assert is_closed


@given(st.lists(st.from_regex(re.compile(rb"[^\r\n]+"), fullmatch=True), max_size=5))
def test_what_is_written_is_read(written: list[bytes]) -> None:
    """The reader and the writer agree; a space at the beginning of the data stays."""
    assert _data([sse.event(data, name="message") for data in written], max_bytes=10_000) == written


def test_events_are_written_as_openai_writes_them() -> None:
    """With and without a name."""
    assert sse.event(b"1") == b"data: 1\n\n"
    assert sse.event(b"1", "error") == b"event: error\ndata: 1\n\n"
    assert sse.json_event({"a": None}) == b'data: {"a":null}\n\n'
    assert sse.DONE_EVENT == b"data: [DONE]\n\n"


def test_the_data_of_each_line_of_an_event() -> None:
    """Other fields are skipped."""
    assert list(sse.data_lines(b"event: a\ndata: 1\r\ndata:2\n\n")) == [b" 1", b"2"]
