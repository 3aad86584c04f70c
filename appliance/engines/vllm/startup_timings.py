"""What a start of an engine is spent on: seconds by the name of each part."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.v1.executor.abstract import Executor

Tell = Callable[[str, float], None]
"""
Told of a part when it ends: its name and its seconds.
"""


class StartupTimings:
    """The parts of one start in the order in which they ended; heard and read in any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds: Mapping[str, float] = {}
        self._clock = clock
        self._hearing = threading.Lock()

    def hear(self, name: str, seconds: float) -> None:
        """So much more was spent on a part."""
        with self._hearing:
            # Replaced whole: somebody may be reading it.
            self.seconds = {**self.seconds, name: self.seconds.get(name, 0.0) + seconds}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What the block takes, less the parts that are heard of within it."""
        began, before = self._clock(), sum(self.seconds.values())
        try:
            yield
        finally:
            within = sum(self.seconds.values()) - before
            self.hear(name, max(0.0, self._clock() - began - within))


def timed(executor: type[Executor], tell: Tell) -> type[Executor]:
    """An executor like the given one that tells what its own part of a start was spent on.

    It lives in the engine core's process, wherever the model itself lives, and what it calls waits for the model.
    """

    class TimedPart(executor):  # type: ignore[misc]  # vLLM is Any to mypy
        def _init_executor(self) -> None:
            with telling("weights"):
                super()._init_executor()

        def determine_available_memory(self) -> Any:  # Any: vLLM's, as in the methods below
            with telling("profile"):
                return super().determine_available_memory()

        def initialize_from_config(self, *arguments: Any) -> Any:
            with telling("kv_cache"):
                return super().initialize_from_config(*arguments)

        def compile_or_warm_up_model(self) -> Any:
            with telling("warm_up"):
                return super().compile_or_warm_up_model()

    @contextlib.contextmanager
    def telling(name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        tell(name, time.monotonic() - began)

    return TimedPart
