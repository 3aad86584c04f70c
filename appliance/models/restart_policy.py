"""How often a model may die, and how long it waits before each new start."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from appliance.core.errors import ApplianceError
from appliance.core.retry import backoff_seconds

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When a model that dies over and over is given up."""

    most_deaths: int = 5
    """The death in a row that is the last."""

    well_seconds: float = 600.0
    """A life of this length ends a row: what killed it then is something else."""

    first_seconds: float = 1.0
    """Pause before the first new start; each further one is twice as long."""

    most_seconds: float = 60.0
    """The longest pause."""


class RestartTracker:
    """The deaths of one model in a row."""

    def __init__(self, patience: RestartPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience = patience
        self._clock = clock
        self._came_alive: float | None = None
        self._first = 0.0
        self.in_a_row = 0

    def come_alive(self) -> None:
        """The model answers from now on."""
        self._came_alive = self._clock()

    def count(self) -> None:
        """It died now, alive or on its way there."""
        now = self._clock()
        was_well = self._came_alive is not None and now - self._came_alive >= self._patience.well_seconds
        if was_well or self.in_a_row == 0:
            self.in_a_row, self._first = 0, now
        self._came_alive = None
        self.in_a_row += 1

    @property
    def is_loop(self) -> bool:
        """To start it anew would be in vain."""
        return self.in_a_row >= self._patience.most_deaths

    @property
    def lasted_seconds(self) -> float:
        """From the first death of the row until now."""
        return self._clock() - self._first

    @property
    def pause_seconds(self) -> float:
        """The delay before the next start."""
        policy = self._patience
        return backoff_seconds(self.in_a_row, first_seconds=policy.first_seconds, max_seconds=policy.most_seconds)


def reason_of(error: Exception, name: str) -> str:
    """Why the named model is not well, for the probes; what is no error of ours goes to the log with all of it."""
    if isinstance(error, ApplianceError):
        return str(error)
    log.error("model.broke", model=name, exc_info=error)
    return f"unexpected {type(error).__name__}: {error}"
