"""Errors of pydantic as errors of ours: the field at fault as the client wrote it, and what its value may be."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic import ValidationError

from appliance.core.errors import RequestError

# What pydantic wants, by the type of its error: in JSON's words.
_WANTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "an array",
    "iterable_type": "an array",
    "tuple_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dataclass_type": "an object",
    "mapping_type": "an object",
    "none_required": "null",
}

# By these fields a client says which of several kinds an object is.
_TAGS = frozenset({"type", "role"})

# Beyond so many, describing each takes longer than the request is worth.
_MOST_FAULTS = 10_000

# What only who runs the server can change: environment variables and options of a command line.
_OPERATORS = re.compile(r"\bVLLM_[A-Z_]+|(?<![\w-])--[a-z]|environment variable")

_PRINTED_CLASS = re.compile(r"<(?:class|enum) '(?:\w+\.)*(\w+)'>")
_PRINTED_OBJECT = re.compile(r"\{'.*\}", re.DOTALL)
_LONGEST_MESSAGE = 1000


@dataclass(frozen=True, slots=True)
class _ValidationFault:
    """One error of pydantic.

    `path` leads to the value in the request; `branch` is how pydantic came to the object that holds it, with the types
    it tried on the way.
    """

    path: tuple[str | int, ...]
    branch: tuple[str | int, ...]
    kind: str
    message: str
    expected: str

    @property
    def is_other_kind(self) -> bool:
        """Whether the object says that it is of another kind than the type that was tried."""
        return self.kind == "literal_error" and bool(self.path) and self.path[-1] in _TAGS


def invalid(error: ValidationError, body: bytes | None = None, prefix: Sequence[str | int] = ()) -> RequestError:
    """Describe what pydantic found wrong with `body`, or with the part of it that `prefix` leads to.

    Without a body the fields are told from the types that pydantic tried by their names alone.
    """
    if error.error_count() > _MOST_FAULTS:
        return RequestError("The body is not a request for this operation: most of its values have a wrong type.")
    root = _at(json_of(body), prefix) if body is not None else None
    faults = [_fault(details, root, is_known=body is not None) for details in error.errors(include_url=False)]
    chosen = _nearest(faults)
    place = _written((*prefix, *chosen[0].path))
    text = _described(chosen)
    return RequestError(f"{place} {text}" if place else f"The body {text}", param=place or None)


def for_clients(message: str, param: str | None) -> str:
    """Return a message of vLLM's without what a client can do nothing with."""
    message = _PRINTED_CLASS.sub(r"\1", _PRINTED_OBJECT.sub("{...}", message))
    sentences = [text for text in re.split(r"(?<=[.!?])\s+", message) if not _OPERATORS.search(text)]
    text = " ".join(sentences) or f"{param or 'What the request asks for'} is not allowed by this server."
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."


def json_of(body: bytes) -> Any:  # Any: JSON values
    """The value that a body holds; None where it holds none."""
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None


def _at(value: Any, path: Sequence[str | int]) -> Any:  # Any: JSON values
    for part in path:
        value = value[part]
    return value


def _fault(details: Any, root: Any, *, is_known: bool) -> _ValidationFault:  # Any: pydantic's details, JSON values
    """An error of pydantic's; its location mixes fields with the types that it tried, which no body has in it."""
    location, kind = details["loc"], details["type"]
    path: list[str | int] = []
    value, end = root, 0
    for index, part in enumerate(location):
        if not is_known:
            is_field = isinstance(part, int) or part.islower()
        elif isinstance(part, int):
            is_field = isinstance(value, list) and part < len(value)
        else:
            is_field = isinstance(value, dict) and part in value
        if is_field or (kind == "missing" and index == len(location) - 1):
            path.append(part)
            end = index
            value = value[part] if is_field and is_known else None
    expected = str(details.get("ctx", {}).get("expected", ""))
    return _ValidationFault(tuple(path), tuple(location[:end]), kind, _message(details), expected)


def _message(details: Any) -> str:  # Any: pydantic's details
    kind = details["type"]
    if kind == "missing":
        return "is missing"
    if kind == "json_invalid":
        return f"is not valid JSON: {details['ctx']['error']}"
    if kind in _WANTED:
        return f"must be {_WANTED[kind]}"
    if kind == "extra_forbidden":
        return "is no field of this request"
    if kind == "value_error":
        return f"is refused: {for_clients(str(details['ctx']['error']), None)}"
    if kind.startswith("is_instance") or "callable" in kind:
        return "has a value of the wrong type"
    return for_clients(details["msg"].replace("Input should", "must"), None)


def _nearest(faults: Sequence[_ValidationFault]) -> Sequence[_ValidationFault]:
    """The errors of the type that fits best, all about one value: of a union pydantic tells what is wrong with each.

    That is the one whose error lies deepest in the request; a type of another kind than the object says comes last.
    """
    depth = max(len(fault.path) for fault in faults)
    branches: defaultdict[tuple[str | int, ...], list[_ValidationFault]] = defaultdict(list)
    for fault in faults:
        if len(fault.path) == depth:
            branches[fault.branch].append(fault)
    of_its_kind = [branch for branch in branches.values() if not any(fault.is_other_kind for fault in branch)]
    if of_its_kind:
        # A type whose fields are there fits better than one whose fields are missing.
        chosen = min(of_its_kind, key=lambda branch: (_missing(branch), len(branch)))
        # Types that pydantic has no name for share a branch: what is there tells which of them is meant.
        first = next((fault for fault in chosen if fault.kind != "missing"), chosen[0])
        return [fault for fault in chosen if fault.path == first.path]
    found = [fault for branch in branches.values() for fault in branch if fault.is_other_kind]
    return [fault for fault in found if fault.path == found[0].path]


def _missing(branch: Sequence[_ValidationFault]) -> int:
    return sum(fault.kind == "missing" for fault in branch)


def _described(faults: Sequence[_ValidationFault]) -> str:
    first = faults[0]
    if first.kind == "literal_error":
        expected = [word for fault in faults for word in re.findall(r"'[^']*'|\b\d+\b", fault.expected)]
        return f"must be one of: {', '.join(dict.fromkeys(expected))}"
    if first.kind in _WANTED:
        return f"must be {' or '.join(dict.fromkeys(_WANTED[fault.kind] for fault in faults if fault.kind in _WANTED))}"
    return first.message


def _written(path: Sequence[str | int]) -> str:
    """A path as OpenAI writes it: ``messages[0].content``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
