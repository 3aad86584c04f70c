"""JSON objects changed in place: nothing moves that was not named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.json_edit import MOST_MEMBERS, NotAnObjectError, add, changed, drop, lay, put, span_of

BODY = (
    b'{ "a" : 1.000 ,\n "model":"x","n": 123456789012345678901234567890, "c":{"model": "\\u0078"} , "nul\\u006c":null }'
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=3) | st.just("model"), json_values, max_size=5)


def _written(value: object, indent: int | None, ascii_only: bool) -> bytes:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    return text.encode("utf-8", "surrogatepass")


def test_a_value_is_replaced_and_every_other_byte_stays() -> None:
    """Spaces, long numbers, trailing zeros, escapes and null."""
    assert changed(BODY, {"model": put("new")}) == BODY.replace(b'"x"', b'"new"')


def test_members_are_added_at_the_end() -> None:
    """To an empty object too."""
    assert changed(b'{"a":1}', {"b": put([1])}) == b'{"a":1, "b": [1]}'
    assert changed(b" { } ", {"b": put("c")}) == b' {"b": "c" } '


@pytest.mark.parametrize(
    ("name", "left"), [("a", b'{"b" : 2 , "c":3}'), ("b", b'{"a":1 , "c":3}'), ("c", b'{"a":1, "b" : 2}')]
)
def test_a_member_is_dropped_with_its_comma(name: str, left: bytes) -> None:
    """First, middle and last."""
    assert changed(b'{"a":1, "b" : 2 , "c":3}', {name: drop}) == left


def test_all_members_can_be_dropped() -> None:
    """What is left is an object."""
    assert json.loads(changed(b'{"a":1, "b":2}', {"a": drop, "b": drop, "c": put(1)})) == {"c": 1}


def test_additions_fill_up_and_never_overwrite() -> None:
    """Also within mappings; null is a value."""
    body = b'{"o": {"a": 1}, "n": null, "s": "text"}'
    changes = {"o": add({"a": 2, "b": {"c": 3}}), "n": add(1), "s": add({"a": 1}), "x": add(True)}

    assert json.loads(changed(body, changes)) == {"o": {"a": 1, "b": {"c": 3}}, "n": None, "s": "text", "x": True}


def test_overlays_go_over_what_is_there() -> None:
    """Member by member where both are mappings, whole where not."""
    body = b'{"o": {"a": 1, "z": 1.0}, "l": [1]}'

    assert changed(body, {"o": lay({"a": 2}), "l": lay([])}) == b'{"o": {"a": 2, "z": 1.0}, "l": []}'


@pytest.mark.parametrize(
    "body", [b'{"m": 1, "m": 12, "b": 1.0}', b'{"m":12,"m":12,"b": 1.0}', b'{"m":"","m":[],"b":1.0}']
)
def test_of_repeated_names_none_is_left(body: bytes) -> None:
    """Whoever reads the first and whoever reads the last get the same; other values stay as they were written."""
    made = changed(body, {"m": put("new")})

    assert json.loads(made, object_pairs_hook=list) == [("m", "new"), ("b", 1.0)]
    assert b"1.0" in made


@pytest.mark.parametrize("body", [b"", b"[]", b'"model"', b"{", b'{"a": nope}', b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_said_to_be_none(body: bytes) -> None:
    """Never a crash."""
    assert span_of(body, "model") is None
    with pytest.raises(NotAnObjectError):
        changed(body, {})


def test_a_path_leads_into_objects() -> None:
    """And to nothing where something is in the way."""
    span = span_of(BODY, "c", "model")

    assert span is not None
    assert BODY[span] == b'"\\u0078"'
    assert span_of(BODY, "a", "model") is None
    assert span_of(BODY, "c", "none") is None
    assert span_of(b'{"model": "a", "model": "b"}', "model") is None


@given(objects, st.sampled_from([None, 1]), st.booleans(), json_values)
def test_any_object_reads_as_if_it_had_been_parsed(
    value: dict[str, Any], indent: int | None, ascii_only: bool, new: Any
) -> None:
    """For whatever JSON, in whatever style."""
    body = _written(value, indent, ascii_only)

    assert changed(body, {}) == body
    assert json.loads(changed(body, {"model": put(new)})) == value | {"model": json.loads(json.dumps(new))}
    assert json.loads(changed(body, {"model": drop})) == {key: item for key, item in value.items() if key != "model"}


@pytest.mark.parametrize("path", [("model",), ("message", "model")])
def test_an_object_of_too_many_members_is_not_gone_through(path: tuple[str, ...]) -> None:
    """Neither in a request nor, with its model somewhere inside, in an answer; a large value of few members is."""
    many = b"{" + b",".join(b'"%d":0' % number for number in range(MOST_MEMBERS)) + b',"model":"m"}'
    large = b'{"data":[' + b",".join([b"0.25"] * 1_000_000) + b'],"model":"m"}'
    wrap = b'{"message":%s}' if len(path) > 1 else b"%s"

    assert span_of(wrap % many, *path) is None
    assert span_of(wrap % large, *path) is not None
    with pytest.raises(NotAnObjectError, match="more than 10000 members"):
        changed(wrap % many, {path[0]: lay({path[-1]: "n"})})
