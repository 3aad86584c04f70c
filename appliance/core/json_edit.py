"""JSON objects edited in place: what is not changed keeps its bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import msgspec

from appliance.core.json_limits import has_more_members

# The bytes are known to be JSON when these are used.
_KEY = re.compile(rb'[\s,]*+("(?:[^"\\]++|\\.)*+")\s*+:\s*+', re.DOTALL)
_END = re.compile(rb"\s*\}\s*")

MAX_MEMBERS = 10_000
"""
Limit of the members of an object that is edited, and of the elements of a list that is searched. Each is a step in
Python.
"""

Change = Callable[[bytes | None], bytes | None]
"""Returns the new value of a member for its old one; None is a member that does not exist."""


class NotAnObjectError(ValueError):
    """The bytes are not a JSON object, or one with too many members."""


class _RepeatedNameError(ValueError):
    """An object has two members of one name, so the position of its value is ambiguous."""


@dataclass(frozen=True, slots=True)
class _Member:
    start: int
    value: int
    end: int


class JsonObject:
    """A JSON object that is parsed once, changed by name, and written once.

    Of members with the same name only the last is kept, which is the one that every parser we know returns.

    Raises:
        NotAnObjectError: the body is not a JSON object.
    """

    def __init__(self, body: bytes) -> None:
        try:
            self._members = _members(body)
        except _RepeatedNameError:
            body = _without_repeats(body)
            self._members = _members(body)
        self._body = body
        self._changed: dict[str, bytes | None] = {}

    def get(self, name: str) -> bytes | None:
        """Return the value of a member as JSON; None where there is no such member."""
        if name in self._changed:
            return self._changed[name]
        member = self._members.get(name)
        return None if member is None else self._body[member.value : member.end]

    def change(self, changes: Mapping[str, Change]) -> None:
        """Change some members; new ones go to the end.

        Raises:
            NotAnObjectError: a nested object has too many members.
        """
        for name, change in changes.items():
            self._changed[name] = change(self.get(name))

    def write(self) -> bytes:
        """Return the object as bytes."""
        return b"".join(piece for _, piece in self._pieces())

    def split(self, name: str) -> tuple[bytes, bytes, bytes]:
        """Return the object as bytes: what is before the value of a member, the value, and what is after it."""
        pieces = list(self._pieces())
        at = next(index for index, (owner, _) in enumerate(pieces) if owner == name)
        before, after = (b"".join(piece for _, piece in part) for part in (pieces[:at], pieces[at + 1 :]))
        return before, pieces[at][1], after

    def _pieces(self) -> Iterator[tuple[str | None, bytes]]:
        """Yield the bytes in order; each value comes with the name of its member."""
        first = next(iter(self._members.values()), None)
        end = first.start if first else self._body.index(b"{") + 1
        yield None, self._body[:end]
        is_empty = True
        for name, member in self._members.items():
            value = self.get(name)
            if value is not None:
                yield None, self._body[member.start if is_empty else end : member.value]
                yield name, value
                is_empty = False
            end = member.end
        for name, value in self._changed.items():
            if value is not None and name not in self._members:
                yield None, (b"" if is_empty else b", ") + msgspec.json.encode(name) + b": "
                yield name, value
                is_empty = False
        yield None, self._body[end:]


def edit(body: bytes, changes: Mapping[str, Change]) -> bytes:
    """Return the object with some of its members changed.

    Raises:
        NotAnObjectError: the body is not a JSON object.
    """
    document = JsonObject(body)
    document.change(changes)
    return document.write()


def replace(value: object) -> Change:
    """The member gets this value."""
    encoded = msgspec.json.encode(value)
    return lambda _: encoded


def default(value: object) -> Change:
    """The member gets this value if it does not exist; of an object, its members do."""
    encoded = msgspec.json.encode(value)
    parts = {name: default(part) for name, part in value.items()} if isinstance(value, dict) else {}
    return lambda old: encoded if old is None else edit(old, parts) if parts and _is_object(old) else old


def merge(value: object) -> Change:
    """The member gets this value; an object is merged into an object, member by member."""
    encoded = msgspec.json.encode(value)
    if not isinstance(value, dict):
        return lambda _: encoded
    parts = {name: merge(part) for name, part in value.items()}
    return lambda old: edit(old, parts) if old is not None and _is_object(old) else encoded


def remove(_: bytes | None) -> None:
    """The member is removed."""


def spans(body: bytes) -> Mapping[str, slice]:
    """Return where the value of each member is; empty where the body is not a JSON object, or repeats a name."""
    try:
        return {name: slice(member.value, member.end) for name, member in _members(body).items()}
    except (NotAnObjectError, _RepeatedNameError):
        return {}


def _is_object(value: bytes) -> bool:
    return value.startswith(b"{")


def _members(body: bytes) -> dict[str, _Member]:
    """Return the members in the order of the bytes.

    msgspec finds the values and their lengths; the keys between them are found here.

    Raises:
        _RepeatedNameError: a name occurs twice.
    """
    values = _values(body)
    position = body.index(b"{") + 1
    members: dict[str, _Member] = {}
    while (key := _KEY.match(body, position)) is not None:
        name = msgspec.json.decode(key[1], type=str)
        value = memoryview(values[name])
        position = key.end() + len(value)
        # A different value at this position means that the name occurs again later.
        if name in members or body[key.end() : position] != value:
            raise _RepeatedNameError
        members[name] = _Member(key.start(1), key.end(), position)
    if len(members) != len(values) or _END.fullmatch(body, position) is None:
        raise _RepeatedNameError
    return members


def _values(body: bytes) -> dict[str, msgspec.Raw]:
    if has_more_members(body, MAX_MEMBERS):
        raise NotAnObjectError(f"an object in it has more than {MAX_MEMBERS} members")
    try:
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError) as error:
        raise NotAnObjectError(str(error)) from error


def _without_repeats(body: bytes) -> bytes:
    members = (msgspec.json.encode(name) + b":" + bytes(value) for name, value in _values(body).items())
    return b"{" + b",".join(members) + b"}"
