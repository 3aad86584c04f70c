"""
Where all models stand together: what the probes are told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


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
