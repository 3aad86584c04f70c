"""The config before it is checked: plain data, and where each part of it comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

from appliance.config.masking import MASK, is_field, is_odd_address, is_private_name, is_secret_name, mask
from appliance.config.source_location import DataPath, Diagnostic, SourceLocation, printable
from appliance.core.uri import scheme_of, secret_spans

Item = TypeVar("Item")

# What everybody sends; their values are words that logs need.
_OPEN_HEADERS = frozenset({"accept", "accept-encoding", "accept-language", "content-type", "user-agent"})

_REFERENCE = re.compile(r"\$\{[^}]*\}")

# Longest value quoted in a message, in characters.
_QUOTE_WIDTH = 60


@dataclass(frozen=True, slots=True)
class RawConfig:
    """Plain data with places; each step of the walk makes a new one from the last."""

    data: Any  # Any: what a file holds before it is checked
    values: Mapping[DataPath, SourceLocation]
    """Where each value stands; a value without an entry stands where its nearest parent does."""

    keys: Mapping[DataPath, SourceLocation]
    """Where the key of each value stands."""

    texts: Mapping[DataPath, frozenset[str]] = field(default_factory=dict)
    """The values that were text outside the file, each with what of it is secret."""

    files: Mapping[Path, str] = field(default_factory=dict)
    """Every file that was read, with the SHA-256 of what it held."""

    def place(self, path: DataPath) -> SourceLocation:
        """Where the value at `path` stands, or the nearest parent that has a place."""
        while path not in self.values:
            path = path[:-1]
        return self.values[path]

    def fault(self, path: DataPath, message: str) -> Diagnostic:
        """A fault of the value at `path`."""
        is_secret = self._is_private(path) and not isinstance(self.find(path), dict | list)
        return Diagnostic(path, message, self.place(path), is_secret, self._is_secret_key(path))

    def key_fault(self, path: DataPath, message: str) -> Diagnostic:
        """A fault of the key at the end of `path`, which no section has."""
        place = self.keys.get(path) or self.place(path)
        # The second half of `{api_key: a,b}` is a key of its own.
        return Diagnostic(path, message, place, has_secret_key=self.find(path) is None or self._is_secret_key(path))

    def _is_private(self, path: DataPath) -> bool:
        value = self.find(path)
        if path and isinstance(path[-1], str) and isinstance(value, str) and is_odd_address(path[-1], value):
            return True
        names = [part for part in path if isinstance(part, str)]
        return bool(self.secrets(path)) or bool(names and is_private_name(names[-1]))

    def _is_secret_key(self, path: DataPath) -> bool:
        """
        Whether the key at the end of `path` may be a secret itself: below secret keys, and unlike those of sections.
        """
        if len(path) < 2 or not isinstance(path[-1], str) or is_field(path[-1]):
            return False
        is_below = any(is_private_name(part) for part in path[:-1] if isinstance(part, str))
        return is_below and ("headers" not in path[:-1] or self.find(path) is None)

    def get(self, path: DataPath) -> Any:  # Any: what a file holds before it is checked
        """The value at `path`, which must exist."""
        value = self.data
        for part in path:
            value = value[part]
        return value

    def secrets(self, path: DataPath) -> frozenset[str]:
        """What is secret at `path` and below it."""
        below = (secret for place, secret in self.texts.items() if place[: len(path)] == path)
        return frozenset[str]().union(*below)

    def concealed(self) -> RawConfig:
        """The draft with the secrets that the file, or `--set`, spells out marked like those from outside."""
        texts = dict(self.texts)
        for path, value in _scalars(self.data):
            if secrets := frozenset(_spelled_out(path, str(value))) - {""}:
                texts[path] = texts.get(path, frozenset()) | secrets
        return replace(self, texts=texts)

    def quote(self, path: DataPath) -> str:
        """The value at `path` for a message: an address without what is secret in it, ``***`` for any other secret."""
        value, secrets = self.get(path), self.secrets(path)
        if not secrets:
            is_known = any(len(each) > 3 and each in str(value) for each in self.secrets(()))
            return MASK if is_known or self._is_private(path) else quote(value)
        if isinstance(path[-1], str) and isinstance(value, str) and is_odd_address(path[-1], value):
            return MASK
        is_address = isinstance(value, str) and secrets.issubset(_in_address(value))
        return quote(mask(value, 0)[0]) if is_address else MASK

    def with_value(self, path: DataPath, value: Any, place: SourceLocation, *, is_text: bool = False) -> RawConfig:
        """The draft with `value` laid over what `path` held: a mapping key by key, anything else as a whole.

        Mappings missing on the way are made; where something else is in the way, the draft stays as it is,
        because that is a fault of its own. `is_text` says that `value` was text from outside, and is secret.
        """
        if isinstance(value, dict) and isinstance(self.find(path), dict):
            draft = self
            for key, item in value.items():
                draft = draft.with_value((*path, key), item, place, is_text=is_text)
            return draft
        if not all(_fits(self.find(path[:depth]), part) for depth, part in enumerate(path)):
            return self
        texts = dict(_leaves(value, path)) if is_text else {}
        made = {path[:depth]: place for depth in range(1, len(path)) if path[:depth] not in self.values}
        return replace(
            self,
            data=_laid(self.data, path, value),
            values=made | _without(self.values, path) | {path: place},
            keys=made | _without(self.keys, path) | {path: place},
            texts=_without(self.texts, path) | texts,
        )

    def goes_into_a_list(self, path: DataPath) -> bool:
        """Whether `path` has a key where the draft has a list."""
        keys = (depth for depth, part in enumerate(path) if isinstance(part, str))
        return any(isinstance(self.find(path[:depth]), list) for depth in keys)

    def find(self, path: DataPath) -> Any:  # Any: what a file holds before it is checked
        """The value at `path`, or None where there is none."""
        try:
            return self.get(path)
        except (KeyError, IndexError, TypeError):
            return None


def quote(value: Any) -> str:  # Any: what a file holds before it is checked
    """A value as it would be written in YAML, cut where it is long."""
    text = printable(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _QUOTE_WIDTH else f"{text[: _QUOTE_WIDTH - 1]}…"


def _scalars(value: Any, path: DataPath = ()) -> Iterator[tuple[DataPath, Any]]:  # Any: JSON
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _scalars(item, (*path, key))
    elif value is not None and not isinstance(value, bool):
        yield path, value


def _spelled_out(path: DataPath, text: str) -> Iterator[str]:
    """What of a scalar is secret: all of it by the name of its key, or parts of an address."""
    if _is_secret(path):
        # One that was not resolved names a variable or a file.
        if not _REFERENCE.fullmatch(text):
            yield text
    else:
        yield from _in_address(text)


def _in_address(text: str) -> Iterator[str]:
    if scheme_of(text) is not None:
        for start, end in secret_spans(text):
            yield text[start:end]
            # Messages of others name the password alone.
            yield text[start:end].partition(":")[2]


def _is_secret(path: DataPath) -> bool:
    """Whether a key on the way to a value says that it is secret; what stands under `headers` mostly is."""
    match path:
        case ("server", "api_keys", int(), "value", *_) | ("storage", "credentials", *_, "key"):
            return True
        case (*above, str(name)) if "headers" in above:
            return name.lower() not in _OPEN_HEADERS
    return any(is_secret_name(part) for part in path if isinstance(part, str))


def _without(places: Mapping[DataPath, Item], path: DataPath) -> dict[DataPath, Item]:
    return {place: item for place, item in places.items() if place[: len(path)] != path}


def _leaves(value: Any, path: DataPath) -> Iterator[tuple[DataPath, frozenset[str]]]:  # Any: JSON
    if not isinstance(value, dict | list):
        yield path, frozenset({str(value)} - {""})
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(item, (*path, key))


def _fits(value: Any, part: str | int) -> bool:  # Any: what a file holds before it is checked
    return isinstance(value, list) if isinstance(part, int) else isinstance(value, dict | NoneType)


def _laid(data: Any, path: DataPath, value: Any) -> Any:  # Any: what a file holds before it is checked
    if not path:
        return value
    head, *rest = path
    if isinstance(head, int):
        return [_laid(item, tuple(rest), value) if index == head else item for index, item in enumerate(data)]
    mapping = {} if data is None else data
    return mapping | {head: _laid(mapping.get(head), tuple(rest), value)}
