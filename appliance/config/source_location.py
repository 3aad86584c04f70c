"""Where a value of the config comes from, and a fault found there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from appliance.config.masking import MASK, is_below_private, mask, mask_below
from appliance.core.errors import Problem

DataPath = tuple[str | int, ...]
"""The way from the root to a value: keys of mappings and indices of lists."""

# YAML 1.2.2 section 5.4, and the breaks of YAML 1.1 that the scanner still counts.
_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")

# A line of a file can be a megabyte of JSON; this much of it around the fault fits a terminal.
_SNIPPET_WIDTH = 100
_MASKED_WIDTH = 4000


# Compared by identity: places are compared often, and the lines of a file are many.
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

    def place(self, line: int, column: int) -> SourceLocation:
        """The place at `line` and `column`, both counted from 0."""
        return SourceLocation(self) if self.lines is None else SourceLocation(self, line + 1, column + 1)


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """A point in a source; `line` and `column` count from 1 and are None where there are none."""

    source: Source
    line: int | None = None
    column: int | None = None

    @property
    def is_secret(self) -> bool:
        """Whether what stands there is secret, as far as its line and those above tell."""
        if self.source.lines is None or self.line is None or self.column is None:
            return "***" in mask(self.source.name, 0)[0]
        if is_below_private(self.source.lines, self.line - 1):
            return True
        line, column = self.source.lines[self.line - 1], self.column - 1
        return mask(line[: column + 1] + "x", 0)[0].endswith(MASK)

    def snippet(self, hidden: Iterable[str] = (), *, is_cut: bool = False) -> str:
        """The line with a caret under the column, cut to a window where it is long; "" where there is none.

        Secrets are ``***`` in it, and so are the texts `hidden`, and all from the column on where it `is_cut`.
        """
        if self.source.lines is None or self.line is None or self.column is None:
            return ""
        # A fault at the end of the text may lie one line past the last.
        line = self.source.lines[self.line - 1] if self.line <= len(self.source.lines) else ""
        # Nothing farther away is shown, and whole lines of a megabyte take long.
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
    """Something wrong at a path, before it is worded as a problem of the file."""

    path: DataPath
    message: str
    place: SourceLocation

    is_secret: bool = False
    """Whether what stands at the place may hold a secret, and is not shown."""

    has_secret_key: bool = False
    """Whether the last key of the path may be one."""

    def problem(self, hidden: Iterable[str] = ()) -> Problem:
        """The fault as it is reported, without the texts `hidden` in what it shows of the file or of `--set`."""
        source = self.place.source
        name = source.name if source.lines is not None else mask(source.name, 0, hidden)[0]
        if self.is_secret and source.lines is None and "=" in name:
            name = f"{name.partition('=')[0]}={MASK}"
        return Problem(
            source=name,
            line=self.place.line,
            column=self.place.column,
            path=dotted((*self.path[:-1], MASK) if self.has_secret_key else self.path),
            message=self.message,
            snippet=self.place.snippet(hidden, is_cut=self.is_secret or self.has_secret_key),
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
