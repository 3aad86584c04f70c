"""When a model that died is restarted, after what pause, and when it is given up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from appliance.core.concurrency import backoff_seconds


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Limits for the restarts of a model that dies again and again."""

    max_deaths: int = 5
    """Deaths in a row after which it is not restarted any more."""
    healthy_seconds: float = 600.0
    """A model that was ready for so long ends the row: its death has another cause."""
    first_pause_seconds: float = 1.0
    """Pause before the first restart; each further one is twice as long."""
    max_pause_seconds: float = 60.0


class RestartTracker:
    """The deaths of one model in a row."""

    def __init__(self, policy: RestartPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._alive_since: float | None = None
        self._first_death = 0.0
        self.in_a_row = 0

    def mark_alive(self) -> None:
        """Note that the model is ready now."""
        self._alive_since = self._clock()

    def count(self) -> None:
        """Count a death, of a model that was ready or on its way there."""
        now = self._clock()
        was_healthy = self._alive_since is not None and now - self._alive_since >= self._policy.healthy_seconds
        if was_healthy or self.in_a_row == 0:
            self.in_a_row, self._first_death = 0, now
        self._alive_since = None
        self.in_a_row += 1

    @property
    def row_seconds(self) -> float:
        """Seconds since the first death of the row."""
        return self._clock() - self._first_death

    @property
    def is_loop(self) -> bool:
        """Whether it died too often to be restarted."""
        return self.in_a_row >= self._policy.max_deaths

    @property
    def pause_seconds(self) -> float:
        """Pause before the next restart."""
        policy = self._policy
        return backoff_seconds(
            self.in_a_row, first_seconds=policy.first_pause_seconds, max_seconds=policy.max_pause_seconds
        )
