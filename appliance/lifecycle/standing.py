"""
Where all models stand together: what the probes are told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class FileStanding:
    """
    Which file is served, and what became of a newer one.
    """

    digest: str
    """SHA-256 of the file that is served."""

    loaded_at: str
    """When all of it was served, in ISO 8601."""

    error: str | None = None
    """What is wrong with the file as it is now; None where nothing is."""

    waiting: Sequence[str] = ()
    """The keys that need a restart, for which the file as it is now is not served."""


@dataclass(frozen=True, slots=True)
class Standing:
    """
    Answers to the probes, and the models behind them.
    """

    is_live: bool
    """No model is beyond help."""

    is_ready: bool
    """Every model answers."""

    has_started: bool
    """Every model has been ready once."""

    retry_after: int
    """Seconds after which asking again makes sense."""

    models: Sequence[Mapping[str, Any]]  # Any: JSON values
    """Each model as probes show it."""

    workers: Sequence[Mapping[str, Any]] = ()  # Any: JSON values
    """Each worker as probes show it; empty where there is one."""

    config: Mapping[str, Any] | None = None  # Any: JSON values
    """The file as probes show it, with the models that it is bringing; None where there is none."""

    reason: str | None = None
    """Why it is not well, where that is no model's doing; None where it is."""
