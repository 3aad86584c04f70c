"""What the owner of the models publishes of them, and how another thread gets the newest of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable

from prometheus_client.core import Metric

from appliance.models.health import HealthReport
from appliance.models.manager import ModelManager
from appliance.server.worker_health import WorkerHealthFile

# How old what a worker hears of the others can be, before they are ready and then.
_SAY_SOON_SECONDS = 0.1
_SAY_SECONDS = 1.0

# How long a probe waits for the newest; then it is told what was published last, a second ago or less where the event
# loop is not blocked.
_FRESH_SECONDS = 0.2


class Publishing:
    """Has an outlook publish over and over, while the event loop goes round."""

    def __init__(self, published: WorkerHealthFile, manager: ModelManager) -> None:
        self._published = published
        self._manager = manager
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Publish from now on."""
        self._task = asyncio.create_task(self._publish_often())

    async def stop(self) -> None:
        """Publish a last time."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._published.publish()

    async def _publish_often(self) -> None:
        while True:
            self._published.publish()
            await asyncio.sleep(_SAY_SECONDS if self._manager.is_ready else _SAY_SOON_SECONDS)


class Fresh:
    """An outlook that is published anew before it is read."""

    def __init__(self, published: WorkerHealthFile, refresh: Callable[[], None]) -> None:
        self._published = published
        self._refresh = refresh

    def standing(self) -> HealthReport:
        self._refresh()
        return self._published.standing()

    def metrics(self) -> Iterable[Metric]:
        self._refresh()
        return self._published.metrics()


class Refresh:
    """Asks the event loop that owns the models to publish where they stand, from another thread, and waits for that.

    A loop that has not answered the last time is not waited for again, until it has.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, publish: Callable[[], None]) -> None:
        self._loop = loop
        self._publish = publish
        self._is_done = threading.Event()
        self._is_done.set()

    def __call__(self) -> None:
        """Return when it is published, or will not be soon."""
        if self._is_done.is_set():
            self._is_done.clear()
            # The loop may be closed already.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._answer)
                self._is_done.wait(_FRESH_SECONDS)

    def _answer(self) -> None:
        try:
            self._publish()
        finally:
            self._is_done.set()
