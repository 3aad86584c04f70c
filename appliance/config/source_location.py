"""Where a value of the config comes from, and an error found there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from appliance.config.masking import MASK, is_below_private, mask, mask_below
from appliance.core.errors import Problem

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


# Compared by identity: locations are compared often, and the lines of a file are many.
@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A text that values come from; only the text of a file has lines worth showing."""

    name: str
    """The file, or e.g. ``environment APPLIANCE__SERVER__PORT``."""

    lines: tuple[str, ...] | None = None
    """The lines of the file; None where positions would mean nothing."""

    @classmethod
    def of_file(cls, name: str, text: str) -> Source:
        """The source that is a file."""
        return cls(printable(name), tuple(_LINE_BREAK.split(text)))

    def at(self, line: int, column: int) -> SourceLocation:
        """The location at `line` and `column`, both counted from 0."""
        return SourceLocation(self) if self.lines is None else SourceLocation(self, line + 1, column + 1)


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """A point in a source; `line` and `column` count from 1 and are None where there are none."""

    source: Source
    line: int | None = None
    column: int | None = None

    @property
    def is_secret(self) -> bool:
        """Whether the text here is secret, by the keys on its line and above it."""
        if self.source.lines is None or self.line is None or self.column is None:
            return MASK in mask(self.source.name, 0)[0]
        if is_below_private(self.source.lines, self.line - 1):
            return True
        line, column = self.source.lines[self.line - 1], self.column - 1
        return mask(line[: column + 1] + "x", 0)[0].endswith(MASK)

    def inside(self, line: int = 1, offset: int | None = None) -> SourceLocation:
        """The location of a character in the text that begins here: `line` counts from 1, `offset` in it from 0.

        Without an offset it is the first character of the line that is not blank. It is this location where the text
        is not in the file as it is, because it is folded or escaped.
        """
        lines = self.source.lines
        if lines is None or self.line is None or self.column is None:
            return self
        start = lines[self.line - 1][self.column - 1 :]
        skipped = len(_PROPERTIES.match(start)[0])  # type: ignore[index]  # it matches at least nothing
        match start[skipped : skipped + 1]:
            case "|":
                return self._in_block(lines, self.line, line, offset)
            case ">":
                return self
            case quote:
                column = self.column + skipped + (1 if quote in "'\"" else 0) + (offset or 0)
                is_here = line == 1 and column <= len(lines[self.line - 1]) + 1
                return SourceLocation(self.source, self.line, column) if is_here else self

    def _in_block(self, lines: Sequence[str], head: int, line: int, offset: int | None) -> SourceLocation:
        """In a literal block, whose lines begin below its indicator `|`, all indented alike."""
        number = head + line
        if number > len(lines):
            return self
        first = next((text for text in lines[head:] if text.strip()), "")
        indent = len(first) - len(first.lstrip(" "))
        text = lines[number - 1]
        column = len(text) - len(text.lstrip()) if offset is None else indent + offset
        return SourceLocation(self.source, number, min(column, len(text)) + 1)

    def snippet(self, hidden: Iterable[str] = (), *, is_cut: bool = False) -> str:
        """The line with a caret under the column, cut to a window where it is long; "" where there is none.

        Secrets and the texts `hidden` are shown as ``***``, and with `is_cut` everything from the column on.
        """
        if self.source.lines is None or self.line is None or self.column is None:
            return ""
        # An error at the end of the text may lie one line past the last.
        line = self.source.lines[self.line - 1] if self.line <= len(self.source.lines) else ""
        # Nothing farther away is shown, and masking a line of a megabyte takes long.
        cut = max(0, self.column - 1 - _MASKED_WIDTH)
        if is_below_private(self.source.lines, self.line - 1):
            line, column = mask_below(line, self.column - 1)
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
        name = source.name if source.lines is not None else mask(source.name, 0, hidden)[0]
        if self.is_secret and source.lines is None and "=" in name:
            name = f"{name.partition('=')[0]}={MASK}"
        return Problem(
            source=name,
            line=self.location.line,
            column=self.location.column,
            path=dotted((*self.path[:-1], MASK) if self.has_secret_key else self.path),
            message=self.message,
            snippet=self.location.snippet(hidden, is_cut=self.is_secret or self.has_secret_key),
        )


def dotted(path: DataPath) -> str:
    """The path as it is written in messages: ``models[0].engine.max_model_len``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_KEY.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{json.dumps(part)}]"
    return text


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would act on or an encoder would refuse."""
    return "".join(char if char.isprintable() or char == "\t" else ascii(char)[1:-1] for char in text)


def is_unicode(text: str) -> bool:
    """Whether the text can be encoded; half a surrogate pair, from an escape or a byte that is not UTF-8, cannot."""
    return not any("\ud800" <= char <= "\udfff" for char in text)
