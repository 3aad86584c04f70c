"""Places inside a text of the file: the line of a template, the character of a path."""

from __future__ import annotations

import re

from appliance.config.raw_config import RawConfig
from appliance.config.source_location import DataPath, SourceLocation

# What may stand between a value's place and the value itself: an anchor or a tag.
_PROPERTIES = re.compile(r"(?:[&!]\S*\s+)*")


def inside(draft: RawConfig, path: DataPath, line: int = 1, offset: int | None = None) -> SourceLocation:
    """The place of a character in the text at `path`: `line` counts from 1, `offset` in it from 0.

    Without an offset it is the first character of the line that is not blank. Where the text does not stand in the file
    as it is, because it is folded, escaped or came out of a reference, it is the place of the whole text.
    """
    place = draft.place(path)
    lines = place.source.lines
    if lines is None or place.line is None or place.column is None or path in draft.texts:
        return place
    start = lines[place.line - 1][place.column - 1 :]
    skipped = len(_PROPERTIES.match(start)[0])  # type: ignore[index]  # it matches nothing at least
    match start[skipped : skipped + 1]:
        case "|":
            return _in_block(lines, place, line, offset)
        case ">":
            return place
        case quote:
            column = place.column + skipped + (1 if quote in "'\"" else 0) + (offset or 0)
            is_whole = line == 1 and column <= len(lines[place.line - 1]) + 1
            return SourceLocation(place.source, place.line, column) if is_whole else place


def _in_block(lines: tuple[str, ...], place: SourceLocation, line: int, offset: int | None) -> SourceLocation:
    """In a literal block, whose lines begin below its sign, all indented alike."""
    head = place.line or 0
    number = head + line
    if number > len(lines):
        return place
    first = next((text for text in lines[head:] if text.strip()), "")
    indent = len(first) - len(first.lstrip(" "))
    text = lines[number - 1]
    column = len(text) - len(text.lstrip()) if offset is None else indent + offset
    return SourceLocation(place.source, number, min(column, len(text)) + 1)
