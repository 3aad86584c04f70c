"""The watchdog of an engine: whether it gets on with the work it has."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.core.errors import EngineDeadError

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.metrics.loggers import StatLoggerBase

# What lies between two looks counts up to here: a process that was itself stopped, or busy, has seen nothing of it.
_MOST_BETWEEN_SECONDS = 2.0

# Clients that give up and ask again leave gaps, in which a stalled engine is no better; longer ones are idleness.
_MOST_GAP_SECONDS = 5.0


class StallWatchdog:
    """Time in which the engine had work and made no step, of whatever request.

    An engine without work is not looked at: one that is stopped then shows with the next request.
    """

    def __init__(
        self, most_seconds: float, clock: Callable[[], float] = time.monotonic, pulse: Heartbeat | None = None
    ) -> None:
        """`pulse` tells of steps that other front ends of the engine have seen, None where there are none."""
        self._most_seconds = most_seconds
        self._pulse = pulse
        self._clock = clock
        self._looked = clock()
        self._quiet_seconds = 0.0
        self._idle_seconds = 0.0

    def step(self) -> None:
        """The engine made a step."""
        self._looked = self._clock()
        self._quiet_seconds = 0.0
        if self._pulse is not None:
            self._pulse.beat()

    def look(self, unfinished: int) -> None:
        """Take in that so many requests are unfinished now; asked often, or it sees less than there is.

        Raises:
            EngineDeadError: it has stalled.
        """
        if self._pulse is not None and self._pulse.has_beaten():
            self._quiet_seconds = 0.0
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


class Heartbeat:
    """
    The steps of an engine that several front ends share, as all of them see it: each hears of its own requests' alone.

    It is the time of a file, which is touched once between two looks.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: int | None = None
        self._is_fresh = False

    def beat(self) -> None:
        """This front end has seen a step."""
        self._is_fresh = True

    def has_beaten(self) -> bool:
        """Whether any front end has seen a step since the last look."""
        if self._is_fresh:
            self._is_fresh = False
            # Not by the kernel's clock, which stands still for milliseconds.
            os.utime(self._file, ns=(moment := time.monotonic_ns(), moment))
        before, self._seen = self._seen, self._file.stat().st_mtime_ns
        return self._seen != before


Step = Callable[[int, bool], None]
"""
Told of a step of the engine core of this number, and whether that said how it stands now.
"""


def step_logger(step: Step) -> Callable[[VllmConfig, int], StatLoggerBase]:
    """
    What vLLM calls with the statistics of each step of an engine, also of one that gave no token; it only tells `step`.
    """
    from vllm.v1.metrics.loggers import StatLoggerBase

    class StepCounter(StatLoggerBase):  # type: ignore[misc]  # vLLM is Any to mypy
        def __init__(self, _config: VllmConfig, engine_index: int = 0) -> None:
            self._number = engine_index

        # Any: vLLM's statistics, of which only the moment counts.
        def record(self, scheduler_stats: Any = None, *_: Any, **__: Any) -> None:
            step(self._number, scheduler_stats is not None)

        def log_engine_initialized(self) -> None:
            pass

    return StepCounter
