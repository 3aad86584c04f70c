"""The root of the tree of errors, and its branches of one or two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class ApplianceError(Exception):
    """Root of the tree: its text names the thing, the fault and the remedy, and is safe to show."""

    status: int = 500
    exit_code: int = 1


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a config.

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


class ConfigError(ApplianceError):
    """The config cannot be used; `problems` holds every fault found, in the order of the file."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class MissingExtraError(ApplianceError):
    """An optional dependency is not installed."""

    exit_code = 2

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed; "
            f"install it with: pip install 'appliance[{extra}]'"
        )


class LoadError(ApplianceError):
    """The engine cannot serve this model as the config asks."""

    status = 503
    exit_code = 4


class EngineDeadError(ApplianceError):
    """The engine ended while it served."""

    status = 503
    exit_code = 4
