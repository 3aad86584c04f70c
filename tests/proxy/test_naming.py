"""The model's name on its way there and back, in bodies, forms and events."""

from __future__ import annotations

import json
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.proxy.model_name import RenamableBody, RenamableEvents, renamed

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
    events = RenamableEvents("mine")
    return b"".join([events.feed(chunk) for chunk in chunks if chunk] + [events.feed(b"")])


def test_every_event_has_the_clients_name_and_nothing_else_is_changed() -> None:
    """Comments, names of events, line ends, texts that speak of models: all as they came."""
    expected = STREAM.replace(b'"model":"upstream-v2"', b'"model":"mine"').replace(
        b'"model" : "upstream-v2"', b'"model" : "mine"'
    )

    assert _all([STREAM]) == expected
    assert expected.count(b"upstream-v2") == 1


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_chunks_may_be_split_anywhere(places: list[int]) -> None:
    """In the middle of a character, of a line end, of the name itself."""
    cuts = [0, *sorted(places), len(STREAM)]
    chunks = [STREAM[start:end] for start, end in pairwise(cuts)]

    assert _all(chunks) == _all([STREAM])


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_whole_lines_do_not_wait(end: bytes) -> None:
    """What is complete goes out at once, and between events is said to be between."""
    events = RenamableEvents("mine")

    assert events.feed(b"data: 1" + end + end + b"data") == b"data: 1" + end + end
    assert events.is_between
    assert events.feed(b": 2" + end + b"id") == b"data: 2" + end
    assert not events.is_between


def test_a_long_line_comes_whole_at_its_end() -> None:
    """However many chunks it takes, and with the name at its end."""
    line = b'data: {"image": "' + b"A" * 1_000_000 + b'", "model": "upstream-v2"}\n\n'
    chunks = [line[start : start + 1000] for start in range(0, len(line), 1000)]

    assert _all(chunks) == line.replace(b"upstream-v2", b"mine")


def test_a_last_line_without_its_end_is_not_lost() -> None:
    """Some upstreams end so."""
    assert _all([CHUNK % b"a"]) == (CHUNK % b"a").replace(b"upstream-v2", b"mine")


@pytest.mark.parametrize("within", ["response", "message"])
def test_events_of_other_protocols_name_it_deeper(within: str) -> None:
    """OpenAI's responses and Anthropic's messages."""
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
def test_what_has_no_name_stays(line: bytes) -> None:
    """Null, broken JSON, other fields, other places."""
    assert _all([line]) == line


def test_an_answer_is_renamed_at_its_top_alone() -> None:
    """Numbers keep their digits; an answer without a name gets none."""
    body = b'{"object": "list", "data": [{"model": "deep", "embedding": [1.50]}], "model": "upstream-v2"}'

    assert renamed(body, "mine") == body.replace(b"upstream-v2", b"mine")
    assert renamed(b'{"results": []}', "mine") == b'{"results": []}'
    assert renamed(b"[1]", "mine") == b"[1]"
    assert renamed(b"oops", "mine") == b"oops"


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"a":1.0, "model":"m\\u00e9", "b":[]}', "m\u00e9"),
        (b'{"a":1.0}', None),
        (b'{"a":1.0, "model":null}', None),
        (b'{"model":"x", "a":1.0, "model":"y"}', "y"),
    ],
)
def test_a_body_goes_under_another_name(body: bytes, name: str | None) -> None:
    """With a place for the name where it lacks one."""
    named = RenamableBody(body, "application/json")
    sent = named.under('u"p')

    assert named.name == name
    assert json.loads(sent) == json.loads(body) | {"model": 'u"p'}
    assert b"1.0" in sent


def test_a_body_under_its_own_name_is_the_same_bytes() -> None:
    """Nothing is written anew."""
    body = b'{ "model" :"m",\t"a":1e5 }'

    assert RenamableBody(body, "").under("m") == body


def test_a_form_goes_under_another_name() -> None:
    """The file in it stays as it is; a form without a name stays so."""
    head = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n'
    form = head % b"file" + b"\xff\x00m\r\n" + head % b"model" + b"m\r\n--b--\r\n"
    named = RenamableBody(form, "multipart/form-data; boundary=b")

    assert named.name == "m"
    assert named.under("up") == form.replace(b"\r\n\r\nm\r\n", b"\r\n\r\nup\r\n")
    assert (
        RenamableBody(head % b"file" + b"x\r\n--b--", "multipart/form-data; boundary=b").under("up").count(b"up") == 0
    )


def test_names_are_written_as_json() -> None:
    """A quote in a name does not break an answer."""
    assert msgspec.json.decode(renamed(b'{"model":"a"}', 'b"c')) == {"model": 'b"c'}
