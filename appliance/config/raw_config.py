"""The config before it is validated: plain data, the location of each part of it, and what of it is secret."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from appliance.config.masking import MASK, is_field, is_odd_address, is_private_name, is_secret_name, mask
from appliance.config.source_location import DataPath, Diagnostic, SourceLocation, printable
from appliance.core.suggestions import did_you_mean, known_names
from appliance.core.uri import scheme_of, secret_spans

# Clients and servers send them with every request, and logs need their values.
_PUBLIC_HEADERS = frozenset({"accept", "accept-encoding", "accept-language", "content-type", "user-agent"})

_REFERENCE = re.compile(r"\$\{[^}]*\}")

# Longest value quoted in a message, in characters.
_QUOTE_WIDTH = 60


class _Unknown:
    """Stands for a value that cannot be known: its error is already reported, or its secret is not resolved."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = _Unknown()


@dataclass(frozen=True, slots=True)
class RawConfig:
    """Plain data with locations; each step of loading makes a new one from the last."""

    data: Any  # Any: what a file holds before it is checked
    locations: Mapping[DataPath, SourceLocation]
    """Where each value stands; a value without an entry stands where its nearest parent does."""

    key_locations: Mapping[DataPath, SourceLocation]
    """Where the key of each value stands."""

    texts: Mapping[DataPath, frozenset[str]] = field(default_factory=dict)
    """The values that were text outside the file, each with what of it is secret."""

    files: Mapping[Path, str] = field(default_factory=dict)
    """Every file that was read, with its SHA-256."""

    errors: Sequence[Diagnostic] = ()
    """The errors found so far, whose values are UNKNOWN."""

    def get(self, path: DataPath) -> Any:  # Any: what a file holds before it is checked
        """The value at `path`, which must exist."""
        value = self.data
        for part in path:
            value = value[part]
        return value

    def find(self, path: DataPath) -> Any:  # Any: what a file holds before it is checked
        """The value at `path`, or None where there is none."""
        try:
            return self.get(path)
        except (KeyError, IndexError, TypeError):
            return None

    def location(self, path: DataPath) -> SourceLocation:
        """Where the value at `path` stands, or its nearest parent that has a location."""
        while path not in self.locations:
            path = path[:-1]
        return self.locations[path]

    def location_inside(self, path: DataPath, line: int = 1, offset: int | None = None) -> SourceLocation:
        """The location of a character in the text at `path`, as `SourceLocation.inside` counts."""
        location = self.location(path)
        return location if path in self.texts else location.inside(line, offset)

    def diagnostic(self, path: DataPath, message: str) -> Diagnostic:
        """An error of the value at `path`."""
        is_secret = self._is_private(path) and not isinstance(self.find(path), dict | list)
        return Diagnostic(path, message, self.location(path), is_secret, self._is_secret_key(path))

    def key_diagnostic(self, path: DataPath, message: str) -> Diagnostic:
        """An error of the key at the end of `path`, such as an unknown one."""
        location = self.key_locations.get(path) or self.location(path)
        # The second half of `{api_key: a,b}` is a key of its own.
        is_secret = self.find(path) is None or self._is_secret_key(path)
        return Diagnostic(path, message, location, has_secret_key=is_secret)

    def secrets(self, path: DataPath) -> frozenset[str]:
        """The secret texts at `path` and below it."""
        below = (secret for other, secret in self.texts.items() if other[: len(path)] == path)
        return frozenset[str]().union(*below)

    def mark_secrets(self) -> RawConfig:
        """The config with the secrets that the file or `--set` spells out marked like those from outside."""
        texts = dict(self.texts)
        for path, value in scalars(self.data):
            if secrets := frozenset(_spelled_out(path, str(value))) - {""}:
                texts[path] = texts.get(path, frozenset()) | secrets
        return replace(self, texts=texts)

    def quote(self, path: DataPath) -> str:
        """The value at `path` for a message: an address without its secrets, ``***`` for any other secret."""
        value, secrets = self.get(path), self.secrets(path)
        if not secrets:
            is_known = any(len(secret) > 3 and secret in str(value) for secret in self.secrets(()))
            return MASK if is_known or self._is_private(path) else quote(value)
        if isinstance(path[-1], str) and isinstance(value, str) and is_odd_address(path[-1], value):
            return MASK
        is_address = isinstance(value, str) and secrets.issubset(_in_address(value))
        return quote(mask(value, 0)[0]) if is_address else MASK

    def hint(self, path: DataPath, kind: str, known: Collection[str], word: str | None = None) -> str:
        """What ends a message about the value at `path`, or the `word` in it, that is none of the `known` ones."""
        # A suggestion would give most of a secret away.
        near = "" if self.secrets(path) else did_you_mean(word or str(self.find(path)), known)
        return near or known_names(kind, known)

    def without(self, paths: Iterable[DataPath]) -> RawConfig:
        """The config with UNKNOWN for the values at the paths, where there are any."""
        raw = self
        for path in paths:
            if raw.find(path) is not None:
                raw = replace(raw, data=with_value(raw.data, path, UNKNOWN))
        return raw

    def models(self) -> Iterator[tuple[DataPath, dict[str, Any]]]:  # Any: not checked yet
        """The entries of `models` that are mappings, with their paths."""
        for index, model in items(self.find(("models",))):
            if isinstance(model, dict):
                yield ("models", index), model

    def _is_private(self, path: DataPath) -> bool:
        value = self.find(path)
        if path and isinstance(path[-1], str) and isinstance(value, str) and is_odd_address(path[-1], value):
            return True
        names = [part for part in path if isinstance(part, str)]
        return bool(self.secrets(path)) or bool(names and is_private_name(names[-1]))

    def _is_secret_key(self, path: DataPath) -> bool:
        """Whether the key at the end of `path` may be a secret itself: it is below a secret key and unlike our keys."""
        if len(path) < 2 or not isinstance(path[-1], str) or is_field(path[-1]):
            return False
        is_below = any(is_private_name(part) for part in path[:-1] if isinstance(part, str))
        return is_below and ("headers" not in path[:-1] or self.find(path) is None)


def reason_of(error: OSError | ValueError) -> str:
    """Why a file cannot be read, without its name."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def items(value: Any) -> Iterator[tuple[int, Any]]:  # Any: not checked yet
    """The entries of a list with their indices; none of anything else."""
    yield from enumerate(value if isinstance(value, list) else ())


def quote(value: Any) -> str:  # Any: what a file holds before it is checked
    """A value as it would be written in YAML, cut where it is long."""
    text = printable(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= _QUOTE_WIDTH else f"{text[: _QUOTE_WIDTH - 1]}…"


def with_value(data: Any, path: DataPath, value: Any) -> Any:  # Any: not checked yet
    """The data with another value at `path`; mappings that are missing above it are made."""
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(head, int):
        return [*data[:head], with_value(data[head], rest, value), *data[head + 1 :]]
    mapping = data or {}
    return mapping | {head: with_value(mapping.get(head), rest, value)}


def scalars(value: Any, path: DataPath = ()) -> Iterator[tuple[DataPath, Any]]:  # Any: JSON
    """The scalars in a value that are text or numbers, with their paths."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from scalars(item, (*path, key))
    elif value is not None and value is not UNKNOWN and not isinstance(value, bool):
        yield path, value


def _spelled_out(path: DataPath, text: str) -> Iterator[str]:
    """The secrets in a scalar: all of it by the name of its key, or parts of an address."""
    if _is_secret(path):
        # A reference that was not resolved names a variable or a file.
        if not _REFERENCE.fullmatch(text):
            yield text
    else:
        yield from _in_address(text)


def _in_address(text: str) -> Iterator[str]:
    if scheme_of(text) is not None:
        for start, end in secret_spans(text):
            yield text[start:end]
            # Messages of other libraries name the password alone.
            yield text[start:end].partition(":")[2]


def _is_secret(path: DataPath) -> bool:
    """Whether a key above a value says that it is secret; what stands under `headers` mostly is."""
    match path:
        case ("server", "api_keys", int(), "value", *_) | ("storage", "credentials", *_, "key"):
            return True
        case (*above, _) if ("storage", "options") in pairwise(above):
            return True
        case (*above, str(name)) if "headers" in above:
            return name.lower() not in _PUBLIC_HEADERS
    return any(is_secret_name(part) for part in path if isinstance(part, str))
