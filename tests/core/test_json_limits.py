"""Limits of JSON before it is decoded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.json_limits import has_more_containers, has_more_members, is_deeper

MOST = 8


def depth(value: Any) -> int:
    """Return the nesting depth, counted the slow way."""
    if isinstance(value, dict | list):
        inside = value.values() if isinstance(value, dict) else value
        return 1 + max((depth(each) for each in inside), default=0)
    return 0


def containers(value: Any) -> int:
    """Return the number of objects and lists, counted the slow way."""
    if isinstance(value, dict | list):
        return 1 + sum(map(containers, value.values() if isinstance(value, dict) else value))
    return 0


# Texts that look like JSON, and nesting on both sides of the limit.
TEXTS = st.text('[]{}"\\,: n', max_size=12)
VALUES = st.recursive(
    st.none() | TEXTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3)
)


@given(VALUES, st.integers(0, MOST))
def test_the_limits_agree_with_counting(value: Any, levels: int) -> None:
    """Whatever the texts contain, and however brackets are nested."""
    for _ in range(levels):
        value = [value, value]

    for ensure_ascii in (True, False):
        body = json.dumps(value, ensure_ascii=ensure_ascii).encode()
        assert is_deeper(body, MOST) == (depth(value) > MOST)
        assert not has_more_containers(body, containers(value))
        assert has_more_containers(body, containers(value) - 1)


@pytest.mark.parametrize(
    ("body", "is_so"),
    [
        (b"[" * MOST + b"]" * MOST, False),
        (b"[" * (MOST + 1) + b"]" * (MOST + 1), True),
        (b'{"a":' * (MOST + 1) + b"1" + b"}" * (MOST + 1), True),
        (b"[" * 1_000_000, True),
        (b"[{}," * (MOST + 1), True),
        (b"[[1]," * 5 + b"[" * 6 + b"]" * 6, True),
        (b"[]," * 100_000, False),
        (b'"' + b"[" * 100 + b'"', False),
        (b'"\\\\"' + b"[" * 100, True),
        (b'"\\"' + b"[" * 100 + b'"', False),
        (b"", False),
        (b"\xff\x00", False),
    ],
)
def test_invalid_json_is_counted(body: bytes, is_so: bool) -> None:
    """Brackets that are never closed count, and those in texts do not."""
    assert is_deeper(body, MOST) is is_so


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (b'{"a":1,"b":{"c":1,"d":2},"e":"f:g,h","i":[1,2,3,{"j":0}]}', 4),
        (b' \n{"a" : [1,2,3,4,5,6,7,8,9]}', 1),
        (b'[1, [2, 3, 4], {}, "a,b"]', 4),
        (b"{" + b",".join(b'"%d":{"x":0}' % number for number in range(30_000)) + b"}", 30_000),
        (b"[" + b",".join([b'{"a,b":[1,2]}'] * 30_000) + b"]", 30_000),
    ],
)
def test_only_the_outermost_members_are_counted(body: bytes, count: int) -> None:
    """Members of an object and elements of a list, whatever they contain."""
    assert not has_more_members(body, count)
    assert has_more_members(body, count - 1)


@pytest.mark.parametrize("length", [*range(65_530, 65_541), 131_072, 200_000])
@pytest.mark.parametrize("filling", [b"x", b"\\\\", b'\\"', b"[", "é".encode()])
def test_long_texts_may_be_split_anywhere(filling: bytes, length: int) -> None:
    """In a text, after a backslash, before a quote."""
    text = b'["' + (filling * length)[: length // len(filling) * len(filling)] + b'"'

    assert is_deeper(text + b"[" * MOST, MOST)
    assert not is_deeper(text + b"[" * (MOST - 1), MOST)
    assert has_more_members(text + b",1,1]", 2)
    assert not has_more_members(text + b",1,1]", 3)
