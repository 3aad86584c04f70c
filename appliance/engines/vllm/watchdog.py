"""The watchdog of an engine: whether it makes progress while it has requests."""

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

# At most this much counts between two checks: a process that was stopped or busy itself has seen no steps in between.
_MAX_INTERVAL_SECONDS = 2.0

# Clients that give up and retry leave gaps in which a stalled engine is not well; a longer gap is idleness.
_IDLE_SECONDS = 5.0


class StallWatchdog:
    """Measures the time in which the engine has requests and makes no step, for whichever request.

    An engine without requests is not checked; if it is stopped, that shows with the next request.
    """

    def __init__(
        self,
        max_stall_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        heartbeat_file: Path | None = None,
    ) -> None:
        """The file is for several front ends, each of which sees the steps of its own requests alone.

        Its modification time is the last step that one of them has seen, written at most once between two checks.
        """
        self._max_stall_seconds = max_stall_seconds
        self._heartbeat_file = heartbeat_file
        self._heartbeat: int | None = None
        self._has_step = False
        self._clock = clock
        self._checked_at = clock()
        self._stall_seconds = self._idle_seconds = 0.0

    def record_step(self) -> None:
        self._checked_at = self._clock()
        self._stall_seconds = 0.0
        self._has_step = True

    def check(self, unfinished: int) -> None:
        """Raise EngineDeadError if the engine has stalled; to be called every second or more often."""
        if self._heartbeat_file is not None and self._has_step_anywhere(self._heartbeat_file):
            self._stall_seconds = 0.0
        now = self._clock()
        passed = min(now - self._checked_at, _MAX_INTERVAL_SECONDS)
        self._checked_at = now
        if unfinished:
            self._idle_seconds = 0.0
            self._stall_seconds += passed
            if self._stall_seconds >= self._max_stall_seconds:
                raise EngineDeadError(
                    f"the engine stalled: {unfinished} requests and no step for {self._stall_seconds:.0f} seconds"
                )
        else:
            self._idle_seconds += passed
            if self._idle_seconds > _IDLE_SECONDS:
                self._stall_seconds = 0.0

    def _has_step_anywhere(self, file: Path) -> bool:
        if self._has_step:
            self._has_step = False
            # Not the kernel's clock, which advances in steps of milliseconds.
            os.utime(file, ns=(now := time.monotonic_ns(), now))
        before, self._heartbeat = self._heartbeat, file.stat().st_mtime_ns
        return self._heartbeat != before


def step_logger(on_step: Callable[[int, bool], None]) -> Callable[[VllmConfig, int], StatLoggerBase]:
    """Return a logger of vLLM's statistics, which vLLM calls at each step of an engine core.

    `on_step` gets the number of the core, and whether the step had statistics of its scheduler.
    """
    from vllm.v1.metrics.loggers import StatLoggerBase

    class StepLogger(StatLoggerBase):  # type: ignore[misc]  # vLLM is Any to mypy
        def __init__(self, _config: VllmConfig, engine_index: int = 0) -> None:
            self._core = engine_index

        # Any: vLLM's statistics, of which only the moment counts.
        def record(self, scheduler_stats: Any = None, *_: Any, **__: Any) -> None:
            on_step(self._core, scheduler_stats is not None)

        def log_engine_initialized(self) -> None:
            pass

    return StepLogger
