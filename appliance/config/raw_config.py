"""The config before it is validated: plain data, the location of each part of it, its secrets, and its errors."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from appliance.config import masking
from appliance.config.masking import MASK, mask
from appliance.core.errors import Problem
from appliance.core.suggestions import did_you_mean, known_names

DataPath = tuple[str | int, ...]
"""The way from the root to a value: keys of mappings and indices of lists."""

# YAML 1.2.2 section 5.4, and the breaks of YAML 1.1 that the scanner still counts.
_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")

# What may stand between a value's location and the value itself: an anchor or a tag.
_PROPERTIES = re.compile(r"(?:[&!]\S*\s+)*")

# A line of a file can be a megabyte of JSON; this much of it around the error fits a terminal.
_SNIPPET_WIDTH = 100
_MASKED_WIDTH = 4000

# Longest value quoted in a message, in characters.
_QUOTE_WIDTH = 60


# Compared by identity: locations are compared often, and the lines of a file are many.
@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A text that values come from; only the text of a file has lines worth showing."""

    name: str
    """The file, or e.g. ``environment APPLIANCE__SERVER__PORT``."""

    lines: tuple[str, ...] = ()
    """The lines of the file; none where positions would mean nothing."""

    @classmethod
    def of_file(cls, name: str, text: str) -> Source:
        """The source that is a file."""
        return cls(printable(name), tuple(_LINE_BREAK.split(text)))

    def at(self, line: int, column: int) -> SourceLocation:
        """The location at `line` and `column`, both counted from 0."""
        return SourceLocation(self, line + 1, column + 1) if self.lines else SourceLocation(self)


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """A point in a source; `line` and `column` count from 1 and are 0 where there are none."""

    source: Source
    line: int = 0
    column: int = 0

    @property
    def is_secret(self) -> bool:
        """Whether the text here is secret, by the keys on its line and above it."""
        if not self.line:
            return MASK in mask(self.source.name, 0)[0]
        if masking.is_below_private(self.source.lines, self.line - 1):
            return True
        line, column = self.source.lines[self.line - 1], self.column - 1
        return mask(line[: column + 1] + "x", 0)[0].endswith(MASK)

    def inside(self, line: int = 1, offset: int | None = None) -> SourceLocation:
        """The location of a character in the text that begins here: `line` counts from 1, `offset` in it from 0.

        Without an offset it is the first character of the line that is not blank. It is this location where the text
        is not in the file as it is, because it is folded or escaped.
        """
        lines = self.source.lines
        if not self.line:
            return self
        start = lines[self.line - 1][self.column - 1 :]
        skipped = len(_PROPERTIES.match(start)[0])  # type: ignore[index]  # it matches at least nothing
        match start[skipped : skipped + 1]:
            case "|":
                return self._in_block(line, offset)
            case ">":
                return self
            case quote:
                column = self.column + skipped + (1 if quote in "'\"" else 0) + (offset or 0)
                is_here = line == 1 and column <= len(lines[self.line - 1]) + 1
                return SourceLocation(self.source, self.line, column) if is_here else self

    def _in_block(self, line: int, offset: int | None) -> SourceLocation:
        """In a literal block, whose lines begin below its indicator `|`, all indented alike."""
        lines, number = self.source.lines, self.line + line
        if number > len(lines):
            return self
        first = next((text for text in lines[self.line :] if text.strip()), "")
        indent = len(first) - len(first.lstrip(" "))
        text = lines[number - 1]
        column = len(text) - len(text.lstrip()) if offset is None else indent + offset
        return SourceLocation(self.source, number, min(column, len(text)) + 1)

    def snippet(self, hidden: Iterable[str] = (), *, is_cut: bool = False) -> str:
        """The line with a caret under the column, cut to a window where it is long; "" where there is none.

        Secrets and the texts `hidden` are shown as ``***``, and with `is_cut` everything from the column on.
        """
        if not self.line:
            return ""
        # An error at the end of the text may lie one line past the last.
        line = self.source.lines[self.line - 1] if self.line <= len(self.source.lines) else ""
        # Nothing farther away is shown, and masking a line of a megabyte takes long.
        cut = max(0, self.column - 1 - _MASKED_WIDTH)
        if masking.is_below_private(self.source.lines, self.line - 1):
            line, column = masking.mask_below(line, self.column - 1)
        elif is_cut:
            before, column = mask(line[cut : self.column - 1], self.column - 1 - cut, hidden)
            line = before if before.endswith(MASK) else before + MASK
        else:
            line, column = mask(line[cut : self.column + _MASKED_WIDTH], self.column - 1 - cut, hidden)
        start = max(0, column - _SNIPPET_WIDTH // 2) if len(line) > _SNIPPET_WIDTH else 0
        # Tabs stay tabs in the caret's line, so that it stands under its column on any terminal.
        indent = "".join("\t" if char == "\t" else " " for char in line[start:column])
        indent = indent.ljust(column - start)
        return f"  {printable(line[start : start + _SNIPPET_WIDTH])}\n  {indent}^"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """An error at a path of the config; `problem` makes it presentable."""

    path: DataPath
    message: str
    location: SourceLocation

    is_secret: bool = False
    """Whether the text at the location may hold a secret, and is not shown."""

    has_secret_key: bool = False
    """Whether the last key of the path may be a secret."""

    is_unresolved: bool = False
    """Whether the error is a reference to a variable or a file that cannot be read."""

    def problem(self, hidden: Iterable[str] = ()) -> Problem:
        """The error as it is reported, with ``***`` for secrets and for the texts `hidden`."""
        source = self.location.source
        name = source.name if source.lines else mask(source.name, 0, hidden)[0]
        if self.is_secret and not source.lines and "=" in name:
            name = f"{name.partition('=')[0]}={MASK}"
        return Problem(
            source=name,
            line=self.location.line or None,
            column=self.location.column or None,
            path=dotted((*self.path[:-1], MASK) if self.has_secret_key else self.path),
            message=self.message,
            snippet=self.location.snippet(hidden, is_cut=self.is_secret or self.has_secret_key),
            is_unresolved=self.is_unresolved,
        )


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
            if secrets := frozenset(masking.secrets_in(path, str(value))) - {""}:
                texts[path] = texts.get(path, frozenset()) | secrets
        return replace(self, texts=texts)

    def quote(self, path: DataPath) -> str:
        """The value at `path` for a message: an address without its secrets, ``***`` for any other secret."""
        value, secrets = self.get(path), self.secrets(path)
        if not secrets:
            is_known = any(len(secret) > 3 and secret in str(value) for secret in self.secrets(()))
            return MASK if is_known or self._is_private(path) else quote(value)
        if masking.is_odd_address(path[-1], value):
            return MASK
        is_address = isinstance(value, str) and secrets.issubset(masking.secrets_of_address(value))
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
        names = [part for part in path if isinstance(part, str)]
        is_private_name = bool(names) and masking.is_private_name(names[-1])
        return (
            is_private_name
            or bool(self.secrets(path))
            or (bool(path) and masking.is_odd_address(path[-1], self.find(path)))
        )

    def _is_secret_key(self, path: DataPath) -> bool:
        """Whether the key at the end of `path` may be a secret itself: it is below a secret key and unlike our keys."""
        if len(path) < 2 or not isinstance(path[-1], str) or masking.is_field(path[-1]):
            return False
        is_below = any(masking.is_private_name(part) for part in path[:-1] if isinstance(part, str))
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


def dotted(path: DataPath) -> str:
    """The path as it is written in messages: ``models[0].engine.max_model_len``."""
    return "".join(
        f".{part}" if isinstance(part, str) and _PLAIN_KEY.fullmatch(part) else f"[{json.dumps(part)}]" for part in path
    ).removeprefix(".")


def printable(text: str, kept: str = "\t") -> str:
    """The text with everything escaped that a terminal would act on or an encoder would refuse, but for `kept`."""
    return "".join(char if char.isprintable() or char in kept else ascii(char)[1:-1] for char in text)


def is_unicode(text: str) -> bool:
    """Whether the text can be encoded; half a surrogate pair, from an escape or a byte that is not UTF-8, cannot."""
    return not any("\ud800" <= char <= "\udfff" for char in text)
