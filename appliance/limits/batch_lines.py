"""Lines of batches that run in pauses of a model's interactive requests, of this worker and of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, TypeVar

from appliance.core.shared_traffic import ModelTraffic
from appliance.limits.traffic import InteractiveTraffic

Result = TypeVar("Result")

# Beside so many interactive sequences one request of a batch runs, which adds 5 % to their work.
_INTERACTIVE_PER_BATCH = 20

# So often a request of a batch is interrupted.
_MAX_INTERRUPTIONS = 3

# The next line of a batch starts after the first token of the last one, if the model reports it, or after this time.
_BEGIN_SECONDS = 0.25

# How often a batch looks whether interactive requests have ended.
_BUSY_SECONDS = 0.1

# How often it looks for interactive requests of other workers while its lines run, and how many it notes at once.
_LOOK_SECONDS = 0.02
_MAX_NOTED = 1000


class BatchLines:
    """Starts lines in pauses, and interrupts them for interactive requests."""

    def __init__(
        self, interactive_load: Callable[[], tuple[int, int]], clock: Callable[[], float], shared: ModelTraffic | None
    ) -> None:
        """`interactive_load` returns the units that interactive requests of this worker hold, and how many wait.

        `shared` are those of the other workers, None if there are none.
        """
        self._interactive_load, self._clock, self._shared = interactive_load, clock, shared
        self._traffic = InteractiveTraffic()
        self._running = 0
        self._interruptible = set[asyncio.Task[Any]]()  # Any: of any result
        self._start_turn = asyncio.Lock()
        self._began = asyncio.Event()
        # Whether the model reports the first tokens of lines; None until a line has ended.
        self._reports_began: bool | None = None
        # Requests of other workers that were noted, and the timer for the next look.
        self._noted = 0 if shared is None else shared.others().arrivals
        self._look: asyncio.TimerHandle | None = None

    def arrive(self) -> None:
        """Note an interactive request, for which lines are interrupted."""
        now = self._clock()
        if self._shared is not None:
            self._running_elsewhere()
            self._shared.arrive(now)
        is_disturbed = self._running > self._most_beside
        self._traffic.arrive(now, is_disturbed=is_disturbed)
        if is_disturbed:
            self._interrupt()

    async def run(self, work: Callable[[], Coroutine[Any, Any, Result]], *, is_idle_enough: bool = False) -> Result:
        """Return the result of the work for a line, which is done in a pause of the interactive requests.

        If one comes, the work is cancelled and begins again in the next pause. After several times it goes on, because
        the pauses may be too short for it. `is_idle_enough` says that a pause begins with the end of the last request.
        """
        for interruptions in count():
            task = await self._start(work, is_idle_enough, interruptions < _MAX_INTERRUPTIONS)
            try:
                return await task
            except asyncio.CancelledError:
                caller = asyncio.current_task()
                if caller is None or caller.cancelling():
                    raise
        raise AssertionError("count() ended; this is a bug")

    def note_began(self) -> None:
        """Note the first token of a line."""
        self._reports_began = True
        self._began.set()

    async def _start(
        self, work: Callable[[], Coroutine[Any, Any, Result]], is_idle_enough: bool, is_interruptible: bool
    ) -> asyncio.Task[Result]:
        """Start a line in a pause, one after the other, so that no step of the engine has the prompts of several."""
        async with self._start_turn:
            # Each request may move the time.
            while seconds := self.wait_seconds(is_idle_enough=is_idle_enough):  # noqa: ASYNC110
                await asyncio.sleep(seconds)
            self._running += 1
            if self._look is None:
                self._look_elsewhere()
            task = asyncio.create_task(work())
            task.add_done_callback(self._end)
            if is_interruptible:
                self._interruptible.add(task)
            self._began.clear()
            began = asyncio.create_task(self._began.wait())
            seconds = 0.0 if self._reports_began is False else _BEGIN_SECONDS
            try:
                await asyncio.wait([task, began], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                task.cancel()
                raise
            finally:
                began.cancel()
            return task

    def _end(self, task: asyncio.Task[Any]) -> None:  # Any: of any result
        self._running -= 1
        self._interruptible.discard(task)
        if self._reports_began is None and not task.cancelled():
            self._reports_began = False

    def _interrupt(self) -> None:
        for task in tuple(self._interruptible):
            task.cancel()

    def wait_seconds(self, *, is_idle_enough: bool = False) -> float:
        """Return when to ask again whether a line may start beside others, in seconds; 0 is now."""
        running_elsewhere = self._running_elsewhere()
        if self._running < self._most_beside:
            return 0.0
        if any(self._interactive_load()) or running_elsewhere:
            return _BUSY_SECONDS
        return 0.0 if is_idle_enough else self._traffic.pause_seconds(self._clock())

    @property
    def _most_beside(self) -> int:
        """Lines that do not disturb the interactive requests that are running."""
        return self._interactive_load()[0] // _INTERACTIVE_PER_BATCH

    def _running_elsewhere(self) -> int:
        """Return the interactive requests that run in other workers, and note those that came since the last look."""
        if self._shared is None:
            return 0
        others = self._shared.others()
        if new := min(others.arrivals - self._noted, _MAX_NOTED):
            self._noted = others.arrivals
            is_disturbed = self._running > self._most_beside
            self._traffic.arrive_elsewhere(new, others.last, is_disturbed=is_disturbed)
            if is_disturbed:
                self._interrupt()
        return others.running

    def _look_elsewhere(self) -> None:
        """Look for requests of other workers, again and again as long as lines run."""
        self._look = None
        self._running_elsewhere()
        if self._running and self._shared is not None:
            self._look = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look_elsewhere)
