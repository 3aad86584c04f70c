"""
The watchdog of an engine: whether it gets on with the work it has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from appliance.errors import EngineDeadError

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.metrics.loggers import StatLoggerBase

# What lies between two looks counts up to here: a process that was itself stopped, or busy, has seen nothing of it.
_MOST_BETWEEN_SECONDS = 2.0

# Clients that give up and ask again leave gaps, in which a stalled engine is no better; longer ones are idleness.
_MOST_GAP_SECONDS = 5.0


class Stall:
    """
    Time in which the engine had work and made no step, of whatever request.

    An engine without work is not looked at: one that is stopped then shows with the next request.
    """

    def __init__(self, most_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_seconds = most_seconds
        self._clock = clock
        self._looked = clock()
        self._quiet_seconds = 0.0
        self._idle_seconds = 0.0

    def step(self) -> None:
        """
        The engine made a step.
        """
        self._looked = self._clock()
        self._quiet_seconds = 0.0

    def look(self, unfinished: int) -> None:
        """
        Take in that so many requests are unfinished now; asked often, or it sees less than there is.

        Raises:
            EngineDeadError: it has stalled.
        """
        now = self._clock()
        passed = min(now - self._looked, _MOST_BETWEEN_SECONDS)
        self._looked = now
        if unfinished:
            self._idle_seconds = 0.0
            self._quiet_seconds += passed
        else:
            self._idle_seconds += passed
            if self._idle_seconds > _MOST_GAP_SECONDS:
                self._quiet_seconds = 0.0
        if unfinished and self._quiet_seconds >= self._most_seconds:
            raise EngineDeadError(
                f"the engine stalled: {unfinished} requests and no step for {self._quiet_seconds:.0f} seconds"
            )


def step_logger(step: Callable[[], None]) -> Callable[[VllmConfig, int], StatLoggerBase]:
    """
    What vLLM calls with the statistics of each step of an engine, also of one that gave no token; it only tells `step`.
    """
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Steps(StatLoggerBase):  # type: ignore[misc]  # vLLM is Any to mypy
        def __init__(self, _config: VllmConfig, _engine_index: int = 0) -> None:
            pass

        def record(self, *_: Any, **__: Any) -> None:  # Any: vLLM's statistics, of which only the moment counts
            step()

        def log_engine_initialized(self) -> None:
            pass

    return Steps
