"""JSON objects edited in place: members that are not changed keep their bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.json_edit import (
    MAX_MEMBERS,
    JsonObject,
    NotAnObjectError,
    default,
    edit,
    merge,
    remove,
    spans,
)

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
    assert edit(BODY, {"model": merge("new")}) == BODY.replace(b'"x"', b'"new"')


def test_new_members_go_to_the_end() -> None:
    """Also in an empty object."""
    assert edit(b'{"a":1}', {"b": merge([1])}) == b'{"a":1, "b": [1]}'
    assert edit(b" { } ", {"b": merge("c")}) == b' {"b": "c" } '


@pytest.mark.parametrize(
    ("name", "left"), [("a", b'{"b" : 2 , "c":3}'), ("b", b'{"a":1 , "c":3}'), ("c", b'{"a":1, "b" : 2}')]
)
def test_a_member_is_removed_with_its_comma(name: str, left: bytes) -> None:
    """The first, the middle and the last one."""
    assert edit(b'{"a":1, "b" : 2 , "c":3}', {name: remove}) == left


def test_all_members_can_be_removed() -> None:
    """The rest is an empty object."""
    assert json.loads(edit(b'{"a":1, "b":2}', {"a": remove, "b": remove, "c": merge(1)})) == {"c": 1}


def test_defaults_never_overwrite() -> None:
    """They fill nested objects too; null is as no value."""
    body = b'{"o": {"a": 1, "b": {"c": null}}, "n": null, "s": "text"}'
    changes = {"o": default({"a": 2, "b": {"c": 3}}), "n": default(1), "s": default({"a": 1}), "x": default(True)}

    assert json.loads(edit(body, changes)) == {"o": {"a": 1, "b": {"c": 3}}, "n": 1, "s": "text", "x": True}


def test_merging_overwrites() -> None:
    """Member by member where both are objects, otherwise whole."""
    body = b'{"o": {"a": 1, "z": 1.0}, "l": [1]}'

    assert edit(body, {"o": merge({"a": 2}), "l": merge([])}) == b'{"o": {"a": 2, "z": 1.0}, "l": []}'


@pytest.mark.parametrize(
    "body", [b'{"m": 1, "m": 12, "b": 1.0}', b'{"m":12,"m":12,"b": 1.0}', b'{"m":"","m":[],"b":1.0}']
)
def test_repeated_names_are_removed(body: bytes) -> None:
    """Parsers that return the first or the last member get the same; other values keep their bytes."""
    made = edit(body, {"m": merge("new")})

    assert json.loads(made, object_pairs_hook=list) == [("m", "new"), ("b", 1.0)]
    assert b"1.0" in made


@pytest.mark.parametrize("body", [b"", b"[]", b'"model"', b"{", b'{"a": nope}', b"\xff", b"[" * 100_000])
def test_bytes_that_are_not_an_object_are_an_error(body: bytes) -> None:
    """Never a crash."""
    assert spans(body) == {}
    with pytest.raises(NotAnObjectError):
        edit(body, {})


def test_the_values_of_members_are_found() -> None:
    """Names may have escapes; a repeated name, or something that is not an object, has no members."""
    found = spans(BODY)

    assert BODY[found["c"]] == b'{"model": "\\u0078"}'
    assert BODY[found["null"]] == b"null"
    assert "none" not in found
    assert spans(b'{"model": "a", "model": "b"}') == spans(b"[1]") == {}


def test_several_changes_are_written_at_once() -> None:
    """Each one sees the result of those before it; the object is split around any value."""
    document = JsonObject(b'{"a": 1.0, "b": 2}')

    document.change({"a": remove, "c": merge(3)})
    document.change({"a": default("new"), "c": merge(4)})

    assert (document.get("a"), document.get("b"), document.get("c")) == (b'"new"', b"2", b"4")
    assert document.write() == b'{"a": "new", "b": 2, "c": 4}'
    assert document.split("b") == (b'{"a": "new", "b": ', b"2", b', "c": 4}')
    assert document.split("c") == (b'{"a": "new", "b": 2, "c": ', b"4", b"}")


@given(objects, st.sampled_from([None, 1]), st.booleans(), json_values)
def test_edited_objects_parse_as_expected(
    value: dict[str, Any], indent: int | None, ascii_only: bool, new: Any
) -> None:
    """For any JSON, in any style."""
    body = _written(value, indent, ascii_only)

    assert edit(body, {}) == body
    assert json.loads(edit(body, {"model": lambda _: json.dumps(new).encode()})) == value | {
        "model": json.loads(json.dumps(new))
    }
    assert json.loads(edit(body, {"model": remove})) == {key: item for key, item in value.items() if key != "model"}


def test_an_object_with_too_many_members_is_not_edited() -> None:
    """A large value of an object with few members is no obstacle."""
    many = b"{" + b",".join(b'"%d":0' % number for number in range(MAX_MEMBERS)) + b',"model":"m"}'
    large = b'{"data":[' + b",".join([b"0.25"] * 1_000_000) + b'],"model":"m"}'

    assert spans(many) == {}
    assert spans(large).keys() == {"data", "model"}
    for body, change in ((many, {"model": merge("n")}), (b'{"message":%s}' % many, {"message": merge({"a": 1})})):
        with pytest.raises(NotAnObjectError, match="more than 10000 members"):
            edit(body, change)
