"""The members of a JSON object changed in place: whatever is not named stays the bytes that came."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from appliance.core.json_limits import has_more_members

# The bytes are known to be JSON when this is used.
_KEY = re.compile(rb'[\s,]*+("(?:[^"\\]++|\\.)*+")\s*+:\s*+', re.DOTALL)
_END = re.compile(rb"\s*\}\s*")

MOST_MEMBERS = 10_000
"""
Most members of an object that is changed, and most elements of a list that is looked into: each is a step in Python.
"""

Change = Callable[[bytes | None], bytes | None]
"""
Makes the new value of a member out of the old one; None is a member that is not there.
"""


class NotAnObjectError(ValueError):
    """The bytes are no JSON object, or one of too many members."""


class _RepeatedError(ValueError):
    """A name stands in an object twice, so where its value stands cannot be said."""


@dataclass(frozen=True, slots=True)
class _JsonMember:
    name: str
    start: int
    value: int
    end: int


def span_of(body: bytes, *path: str) -> slice | None:
    """Where the value at a path of names stands; None where there is none, or no object where one must be."""
    start, end = 0, len(body)
    for name in path:
        try:
            found = next((member for member in _members(body[start:end]) if member.name == name), None)
        except (NotAnObjectError, _RepeatedError):
            return None
        if found is None:
            return None
        start, end = start + found.value, start + found.end
    return slice(start, end)


def changed(body: bytes, changes: Mapping[str, Change]) -> bytes:
    """The object with some of its members changed, new ones at its end.

    Raises:
        NotAnObjectError: the body is no JSON object.
    """
    try:
        members = _members(body)
    except _RepeatedError:
        # Of a repeated name the last value counts, as for every parser we know.
        body = _without_repeats(body)
        members = _members(body)
    end = members[0].start if members else body.index(b"{") + 1
    pieces = [body[:end]]
    for member in members:
        old = body[member.value : member.end]
        new = changes[member.name](old) if member.name in changes else old
        if new is not None:
            between = body[end : member.start] if len(pieces) > 1 else b""
            pieces.append(between + body[member.start : member.value] + new)
        end = member.end
    names = {member.name for member in members}
    for name, change in changes.items():
        new = None if name in names else change(None)
        if new is not None:
            pieces.append((b", " if len(pieces) > 1 else b"") + msgspec.json.encode(name) + b": " + new)
    return b"".join(pieces) + body[end:]


def put(value: object) -> Change:
    """The member has this value."""
    encoded = msgspec.json.encode(value)
    return lambda _: encoded


def add(value: object) -> Change:
    """The member has this value where it has none; mappings are filled up member by member."""
    encoded = msgspec.json.encode(value)
    parts = {name: add(part) for name, part in value.items()} if isinstance(value, dict) else {}
    return lambda old: encoded if old is None else changed(old, parts) if _is_object(old) else old


def lay(value: object) -> Change:
    """The member has this value; a mapping goes over a mapping member by member."""
    encoded = msgspec.json.encode(value)
    if not isinstance(value, dict):
        return lambda _: encoded
    parts = {name: lay(part) for name, part in value.items()}
    return lambda old: changed(old, parts) if old is not None and _is_object(old) else encoded


def drop(_: bytes | None) -> None:
    """The member goes."""


def _is_object(value: bytes) -> bool:
    return value.startswith(b"{")


def _members(body: bytes) -> list[_JsonMember]:
    """Every member in the order of the bytes.

    msgspec walks the values and says how long each is; the keys between them are found here.

    Raises:
        _RepeatedError: a name stands there twice.
    """
    values = _values(body)
    position = body.index(b"{") + 1
    members: list[_JsonMember] = []
    while (key := _KEY.match(body, position)) is not None:
        name = msgspec.json.decode(key[1], type=str)
        value = memoryview(values[name])
        position = key.end() + len(value)
        # A value says itself where it ends; when another one stands here, this is not the last of its name.
        if body[key.end() : position] != value:
            raise _RepeatedError
        members.append(_JsonMember(name, key.start(1), key.end(), position))
    if len(members) != len(values) or _END.fullmatch(body, position) is None:
        raise _RepeatedError
    return members


def _values(body: bytes) -> dict[str, msgspec.Raw]:
    if has_more_members(body, MOST_MEMBERS):
        raise NotAnObjectError(f"an object in it has more than {MOST_MEMBERS} members")
    try:
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError) as error:
        raise NotAnObjectError(str(error)) from error


def _without_repeats(body: bytes) -> bytes:
    members = (msgspec.json.encode(name) + b":" + bytes(value) for name, value in _values(body).items())
    return b"{" + b",".join(members) + b"}"
