"""
One fault of a config, and where it is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """
    One fault of a config.

    `line` and `column` count from 1 and are None where the value does not come from the file;
    `source` is then the place it does come from, e.g. ``environment APPLIANCE__SERVER__PORT``.
    `snippet` is the line of the file with a caret under the fault, or "".
    """

    source: str
    line: int | None
    column: int | None
    path: str
    message: str
    snippet: str = ""

    def __str__(self) -> str:
        place = self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"
        head = ": ".join(part for part in (place, self.path, self.message) if part)
        return f"{head}\n{self.snippet}" if self.snippet else head
