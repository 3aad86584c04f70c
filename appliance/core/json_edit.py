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
"""Limit of an object that is edited, and of a list that is searched: each member is a step in Python."""

Change = Callable[[bytes | None], bytes | None]
"""Returns the new value of a member for its old one; None is a member that does not exist."""


class NotAnObjectError(ValueError):
    """The bytes are not a JSON object, or one with too many members."""


class _RepeatedNameError(ValueError):
    """An object has two members of one name, so the position of its value is ambiguous."""


@dataclass(slots=True)
class _Member:
    comma: bytes
    """What separates it from the member before it."""
    key: bytes
    value: bytes | memoryview | None
    """None if it was removed."""


class JsonObject:
    """A JSON object that is parsed once, changed by name, and written once.

    Of members with the same name only the last is kept, which is the one that every parser we know returns.

    Raises:
        NotAnObjectError: the body is not a JSON object.
    """

    def __init__(self, body: bytes) -> None:
        try:
            positions = _positions(body)
        except _RepeatedNameError:
            members = (msgspec.json.encode(name) + b":" + bytes(value) for name, value in _values(body).items())
            body = b"{" + b",".join(members) + b"}"
            positions = _positions(body)
        view = memoryview(body)
        end = next((start for start, _, _ in positions.values()), body.index(b"{") + 1)
        self._head = body[:end]
        self._members: dict[str, _Member] = {}
        for name, (start, value, value_end) in positions.items():
            self._members[name] = _Member(body[end:start], body[start:value], view[value:value_end])
            end = value_end
        self._tail = body[end:]

    def get(self, name: str) -> bytes | None:
        """Return the value of a member as JSON; None where there is no such member."""
        member = self._members.get(name)
        return None if member is None or member.value is None else bytes(member.value)

    def change(self, changes: Mapping[str, Change]) -> None:
        """Change some members; new ones go to the end. Raises NotAnObjectError if a nested object is too large."""
        for name, change in changes.items():
            value = change(self.get(name))
            self._members.setdefault(name, _Member(b", ", msgspec.json.encode(name) + b": ", None)).value = value

    def write(self) -> bytes:
        return b"".join(piece for _, piece in self._pieces())

    def split(self, name: str) -> tuple[bytes, bytes, bytes]:
        """Return the object as bytes: what is before the value of a member, the value, and what is after it."""
        owners, pieces = zip(*self._pieces(), strict=True)
        at = owners.index(name)
        return b"".join(pieces[:at]), bytes(pieces[at]), b"".join(pieces[at + 1 :])

    def _pieces(self) -> Iterator[tuple[str | None, bytes | memoryview]]:
        """Yield the bytes in order; each value comes with the name of its member."""
        yield None, self._head
        is_first = True
        for name, member in self._members.items():
            if member.value is not None:
                yield None, member.key if is_first else member.comma + member.key
                yield name, member.value
                is_first = False
        yield None, self._tail


def edit(body: bytes, changes: Mapping[str, Change]) -> bytes:
    """Return the object with some of its members changed; raises as `JsonObject` does."""
    document = JsonObject(body)
    document.change(changes)
    return document.write()


def default(value: object) -> Change:
    """The member gets this value if it does not exist or is null; of an object, its members do."""
    encoded = msgspec.json.encode(value)
    parts = {name: default(part) for name, part in value.items()} if isinstance(value, dict) else {}
    return lambda old: (
        encoded if old in (None, b"null") else edit(old, parts) if parts and old.startswith(b"{") else old
    )


def merge(value: object) -> Change:
    """The member gets this value; an object is merged into an object, member by member."""
    encoded = msgspec.json.encode(value)
    if not isinstance(value, dict):
        return lambda _: encoded
    parts = {name: merge(part) for name, part in value.items()}
    return lambda old: edit(old, parts) if old is not None and old.startswith(b"{") else encoded


def remove(_: bytes | None) -> None:
    """The member is removed."""


def spans(body: bytes) -> Mapping[str, slice]:
    """Return where the value of each member is; empty where the body is not a JSON object, or repeats a name."""
    try:
        return {name: slice(value, end) for name, (_, value, end) in _positions(body).items()}
    except (NotAnObjectError, _RepeatedNameError):
        return {}


def _positions(body: bytes) -> dict[str, tuple[int, int, int]]:
    """Return where each member begins, where its value begins, and where that ends, in the order of the bytes.

    msgspec finds the values and their lengths; the keys between them are found here.
    """
    values = _values(body)
    position = body.index(b"{") + 1
    found: dict[str, tuple[int, int, int]] = {}
    while (key := _KEY.match(body, position)) is not None:
        name = msgspec.json.decode(key[1], type=str)
        value = memoryview(values[name])
        position = key.end() + len(value)
        # A different value at this position means that the name occurs again later.
        if name in found or body[key.end() : position] != value:
            raise _RepeatedNameError
        found[name] = key.start(1), key.end(), position
    if len(found) != len(values) or _END.fullmatch(body, position) is None:
        raise _RepeatedNameError
    return found


def _values(body: bytes) -> dict[str, msgspec.Raw]:
    if has_more_members(body, MAX_MEMBERS):
        raise NotAnObjectError(f"an object in it has more than {MAX_MEMBERS} members")
    try:
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError) as error:
        raise NotAnObjectError(str(error)) from error
