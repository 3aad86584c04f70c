"""Events on their way to the client."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.json_edit import MAX_MEMBERS
from appliance.proxy.stream import EventRewriter

CHUNK = b'data: {"id":"1","model":"upstream-v2","choices":[{"delta":{"content":"%s"}}]}'
STREAM = b"\n".join(
    [
        b": comment",
        b"",
        CHUNK % b"\xc3\xa9\xf0\x9f\x98\x80",
        b"",
        b"event: message\r",
        CHUNK % b'say \\"model\\":\\"upstream-v2\\"' + b"\r",
        b"\r",
        b'data:{"id":"2", "choices": [], "model" : "upstream-v2"}',
        b"",
        b'data: {"id":"3","choices":[{"delta":{"content":"\\"model\\""}}]}',
        b"",
        b"data: [DONE]",
        b"",
        b"",
    ]
)


def _all(chunks: list[bytes]) -> bytes:
    rewriter = EventRewriter("mine")
    return b"".join([rewriter.feed(chunk) for chunk in chunks] + [rewriter.finish()])


def test_every_event_has_the_clients_name_and_nothing_else_is_changed() -> None:
    """Comments, event names, line ends and texts about models are unchanged."""
    expected = STREAM.replace(b'"model":"upstream-v2"', b'"model":"mine"').replace(
        b'"model" : "upstream-v2"', b'"model" : "mine"'
    )

    assert _all([STREAM]) == expected
    assert expected.count(b"upstream-v2") == 1


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_chunks_may_be_split_anywhere(places: list[int]) -> None:
    """In a character, a line end, or the name itself."""
    cuts = [0, *sorted(places), len(STREAM)]
    chunks = [STREAM[start:end] for start, end in pairwise(cuts)]

    assert _all(chunks) == _all([STREAM])


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_complete_lines_are_relayed_at_once(end: bytes) -> None:
    """The rewriter knows whether it is between two events."""
    events = EventRewriter("mine")

    assert events.feed(b"data: 1" + end + end + b"data") == b"data: 1" + end + end
    assert events.is_between_events
    assert events.feed(b": 2" + end + b"id") == b"data: 2" + end
    assert not events.is_between_events


def test_a_long_line_is_relayed_when_it_ends() -> None:
    """However many chunks it takes, and with the name at its end."""
    line = b'data: {"image": "' + b"A" * 1_000_000 + b'", "model": "upstream-v2"}\n\n'
    chunks = [line[start : start + 1000] for start in range(0, len(line), 1000)]

    assert _all(chunks) == line.replace(b"upstream-v2", b"mine")


def test_a_last_line_without_its_end_is_not_lost() -> None:
    """Some upstreams end like this."""
    assert _all([CHUNK % b"a"]) == (CHUNK % b"a").replace(b"upstream-v2", b"mine")


@pytest.mark.parametrize("within", ["response", "message"])
def test_events_of_other_protocols_are_renamed(within: str) -> None:
    """OpenAI's responses and Anthropic's messages have the name in a nested object."""
    line = b'data: {"type":"start","%s":{"id":"1","model":"upstream-v2"}}\n\n' % within.encode()

    assert _all([line]) == line.replace(b"upstream-v2", b"mine")


@pytest.mark.parametrize(
    "line",
    [
        b'data: {"model": null}\n\n',
        b'data: {"model"\n\n',
        b'event: {"model": "upstream-v2"}\n\n',
        b'data: {"choices": [{"model": "deep"}]}\n\n',
        b'data: "model"\n\n',
    ],
)
def test_lines_without_a_model_name_are_unchanged(line: bytes) -> None:
    """Null, broken JSON, other fields, other places."""
    assert _all([line]) == line


def test_an_event_with_too_many_members_stays() -> None:
    """Finding the name in it would take a step for each."""
    many = b",".join(b'"%d":0' % number for number in range(MAX_MEMBERS))
    line = b'data: {"message":{%s,"model":"upstream-v2"}}\n\n' % many

    assert _all([line]) == line


def _without_usage(*lines: bytes) -> tuple[bytes, list[bytes]]:
    usages: list[bytes] = []
    rewriter = EventRewriter("mine", usages.append)
    return b"".join(map(rewriter.feed, lines)), usages


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (b'data: {"choices":[{"index":0}],"usage":null}\n\n', b'data: {"choices":[{"index":0}]}\n\n'),
        (b'data: {"choices": [1] , "usage" : null }\r\n\r\n', b'data: {"choices": [1] }\r\n\r\n'),
        (b'data: {"choices":[1],"usage":null,"extra":1.0}\n\n', b'data: {"choices":[1],"extra":1.0}\n\n'),
        (b'data: {"usage":null,"choices":[1]}\n\n', b'data: {"choices":[1]}\n\n'),
        (b'data: {"usage":null}\n\n', b"data: {}\n\n"),
        (b'data: {"choices":[{"usage":null}]}\n\n', b'data: {"choices":[{"usage":null}]}\n\n'),
        (b'data: {"choices":["\\"usage\\":null}"]}\n\n', b'data: {"choices":["\\"usage\\":null}"]}\n\n'),
        (b'data: {"choices":[1],"usage":nul}\n\n', b'data: {"choices":[1],"usage":nul}\n\n'),
    ],
)
def test_a_null_usage_is_removed_from_the_outermost_object_alone(line: bytes, kept: bytes) -> None:
    """In any place, and every other byte stays."""
    assert _without_usage(line) == (kept, [])


@pytest.mark.parametrize("choices", [b"[]", b"[ ]"])
def test_the_event_with_the_usage_is_removed(choices: bytes) -> None:
    """With its blank line; it is passed on, however the chunks are split."""
    line = b'data: {"choices":%s,"usage":{"total_tokens":1}}\n' % choices

    assert _without_usage(line, b"\ndata: [DONE]\n\n") == (b"data: [DONE]\n\n", [line])


@pytest.mark.parametrize(
    "line",
    [
        b'data: no JSON, "usage": null}\n\n',
        b'data: {"choices": [, "usage": null}\n\n',
        b'data: ["usage", {"a": 1, "usage": null}]\n\n',
        b'data: {"choices": [], "usage": {"total_tokens": 1}\n\n',
    ],
)
def test_a_line_that_is_not_a_json_object_keeps_what_looks_like_usage(line: bytes) -> None:
    """Also when usage was requested on behalf of the client."""
    usage: list[bytes] = []
    rewriter = EventRewriter("mine", usage.append)

    assert rewriter.feed(line) + rewriter.finish() == line
    assert usage == []
