"""How long each phase of an engine's start takes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.v1.executor.abstract import Executor


class StartupTimings:
    """Seconds by phase, in the order in which the phases ended; written and read in any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds: Mapping[str, float] = {}
        self._clock = clock
        self._lock = threading.Lock()

    def add(self, phase: str, seconds: float) -> None:
        """Add time to a phase."""
        with self._lock:
            # Replaced, not changed: another thread may be reading it.
            self.seconds = {**self.seconds, phase: self.seconds.get(phase, 0.0) + seconds}

    @contextlib.contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Add the time of the block to a phase, without the time of phases that are added within it."""
        start, before = self._clock(), sum(self.seconds.values())
        try:
            yield
        finally:
            within = sum(self.seconds.values()) - before
            self.add(phase, max(0.0, self._clock() - start - within))


def timed_executor(executor: type[Executor], on_phase: Callable[[str, float], None]) -> type[Executor]:
    """Return a subclass of an executor that calls `on_phase` with the name and the seconds of each phase of its start.

    It runs in the engine core's process; the calls return when the model's workers are done.
    """

    @contextlib.contextmanager
    def measure(phase: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        on_phase(phase, time.monotonic() - start)

    class TimedExecutor(executor):  # type: ignore[misc]  # vLLM is Any to mypy
        def _init_executor(self) -> None:
            with measure("weights"):
                super()._init_executor()

        def determine_available_memory(self) -> Any:  # Any: vLLM's, as in the methods below
            with measure("profile"):
                return super().determine_available_memory()

        def initialize_from_config(self, *arguments: Any) -> Any:
            with measure("kv_cache"):
                return super().initialize_from_config(*arguments)

        def compile_or_warm_up_model(self) -> Any:
            with measure("warm_up"):
                return super().compile_or_warm_up_model()

    return TimedExecutor
