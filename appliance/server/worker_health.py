"""Health and metrics of the server: those of this process, or of all workers together.

The event loop that owns the models publishes them. Other threads (probes) and other processes (workers) read what was
published last, so that they answer while the loop is blocked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog
from prometheus_client import REGISTRY
from prometheus_client.core import Metric

from appliance.api.metrics import of_models
from appliance.core.model import FrontEnd
from appliance.models.health import HealthReport
from appliance.models.manager import ModelManager
from appliance.models.state import State
from appliance.server.event_loop_watchdog import UNREADY_SECONDS
from appliance.server.multiprocess_metrics import MetricFamilySum, counted, merged
from appliance.server.shared_memory import SharedSlots

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# How old the published health may be, before the models are ready and then.
_PUBLISH_SECONDS_UNREADY = 0.1
_PUBLISH_SECONDS = 1.0

# How long a probe waits for the event loop to publish; then it gets what was published last, which is at most a second
# old unless the loop is blocked.
_REFRESH_SECONDS = 0.2

# The state of a model in a worker that has not reported yet.
_STARTING = {"state": State.PENDING.value, "reason": "a worker is starting"}


class HealthProvider(Protocol):
    """The health of the server and its metrics."""

    def report(self) -> HealthReport:
        """Return the health for probes."""

    def metrics(self) -> Iterable[Metric]:
        """Return the metrics for a scrape."""


class PublishedHealth(HealthProvider, Protocol):
    """The health as it was published last; any thread may read it."""

    def publish(self) -> None:
        """Publish the health of this process; to be called in the event loop that owns the models."""


class SingleProcessHealth:
    """The health of the only process."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager
        self._stall_seconds = manager.config.server.stall_seconds
        self.publish()

    def publish(self) -> None:
        self._published = time.monotonic(), self._manager.health(), of_models(self._manager)

    def report(self) -> HealthReport:
        published, health, _ = self._published
        silent_seconds = time.monotonic() - published
        if silent_seconds < min(UNREADY_SECONDS, self._stall_seconds):
            return health
        return replace(
            health,
            is_live=health.is_live and silent_seconds < self._stall_seconds,
            is_ready=False,
            reason=f"the event loop has been blocked for {silent_seconds:.0f} seconds; the log says by what",
        )

    def metrics(self) -> Iterable[Metric]:
        yield from REGISTRY.collect()
        yield from self._published[2]


class HealthPublisher:
    """Publishes again and again as long as the event loop runs."""

    def __init__(self, published: PublishedHealth, manager: ModelManager) -> None:
        self._published = published
        self._manager = manager
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Publish from now on."""
        self._task = asyncio.create_task(self._publish())

    async def stop(self) -> None:
        """Publish a last time."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._published.publish()

    async def _publish(self) -> None:
        while True:
            self._published.publish()
            await asyncio.sleep(_PUBLISH_SECONDS if self._manager.is_ready else _PUBLISH_SECONDS_UNREADY)


class FreshHealth:
    """Health that is published before it is read; `refresh` publishes it."""

    def __init__(self, published: PublishedHealth, refresh: Callable[[], None]) -> None:
        self._published = published
        self._refresh = refresh

    def report(self) -> HealthReport:
        self._refresh()
        return self._published.report()

    def metrics(self) -> Iterable[Metric]:
        self._refresh()
        return self._published.metrics()


class RemotePublisher:
    """Has the event loop that owns the models publish, from another thread, and waits for that.

    While the loop has not answered an earlier call, later ones do not wait.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, publish: Callable[[], None]) -> None:
        self._loop = loop
        self._publish = publish
        self._is_done = threading.Event()
        self._is_done.set()

    def __call__(self) -> None:
        """Return once it is published, or after a fraction of a second."""
        if self._is_done.is_set():
            self._is_done.clear()
            # The loop may be closed already.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._run)
                self._is_done.wait(_REFRESH_SECONDS)

    def _run(self) -> None:
        try:
            self._publish()
        finally:
            self._is_done.set()


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """The health and the metrics of one worker; `at` is on the clock that all processes of a machine share."""

    pid: int
    at: float
    health: HealthReport
    families: Sequence[MetricFamilySum]
    past: Sequence[MetricFamilySum]
    """Counts of the workers that had this slot before, and died."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One of several workers."""

    number: int
    slots: SharedSlots
    folder: Path | None = None
    """Directory in which workers that share engines meet; None if there are none."""

    @property
    def front_end(self) -> FrontEnd:
        """This worker as the models see it."""
        return FrontEnd(self.number, self.slots.count, self.folder)


class MultiWorkerHealth:
    """The health of all workers: that of this one, and what the others published last."""

    def __init__(self, manager: ModelManager, worker: WorkerInfo) -> None:
        self._manager = manager
        self._worker = worker
        before = read(worker.slots, worker.number)
        self._past = past_of(before) if before else []
        self._stall_seconds = manager.config.server.stall_seconds

    def publish(self) -> None:
        """Write this worker's health and metrics to its slot."""
        try:
            families = [MetricFamilySum.of(metric) for metric in (*REGISTRY.collect(), *of_models(self._manager))]
        except Exception as error:
            log.error("metrics.dropped", reason=type(error).__name__)
            families = []
        own = WorkerSnapshot(os.getpid(), time.monotonic(), self._manager.health(), families, self._past)
        try:
            write(self._worker.slots, self._worker.number, own)
        except ValueError as error:
            # Too many series for a slot; probes matter more.
            log.error("metrics.dropped", reason=str(error))
            write(self._worker.slots, self._worker.number, replace(own, families=[], past=[]))

    def report(self) -> HealthReport:
        """Return what holds in every worker; of each model the worst state."""
        snapshots = list(self._snapshots())
        now = time.monotonic()
        reported = [snapshot for snapshot in snapshots if snapshot is not None]
        models = [_combine(models) for models in _by_name(reported)]
        if len(reported) < len(snapshots):
            models = [{**model, **_STARTING} for model in models]
        return HealthReport(
            is_live=all(each.health.is_live and now - each.at < self._stall_seconds for each in reported),
            is_ready=all(_is_ready(each, now) for each in snapshots),
            has_started=all(each is not None and each.health.has_started for each in snapshots),
            # Before the first report there is none.
            retry_after=max((each.health.retry_after for each in reported), default=1),
            models=models,
            config=max((each.health.config for each in reported), key=_config_problems, default=None),
            workers=[_describe(number, each, now) for number, each in enumerate(snapshots)],
        )

    def metrics(self) -> Iterator[Metric]:
        """Return counts summed over all workers, including dead ones; all else is labelled with the worker's number."""
        snapshots = {number: each for number, each in enumerate(self._snapshots()) if each is not None}
        return merged({number: (each.families, each.past) for number, each in snapshots.items()})

    def _snapshots(self) -> Iterator[WorkerSnapshot | None]:
        return (read(self._worker.slots, number) for number in range(self._worker.slots.count))


def read(slots: SharedSlots, number: int) -> WorkerSnapshot | None:
    """Return what the worker of this number published last; None if it never did."""
    content = slots.read(number)
    return None if content is None else msgspec.msgpack.decode(content, type=WorkerSnapshot)


def write(slots: SharedSlots, number: int, snapshot: WorkerSnapshot) -> None:
    """Write the snapshot of the worker of this number."""
    slots.write(number, msgspec.msgpack.encode(snapshot))


def mark_dead(slots: SharedSlots, number: int) -> None:
    """Mark the worker of a slot as dead, and keep its counts."""
    last = read(slots, number)
    if last is not None:
        models = [{**model, **_STARTING, "running": 0, "queued": 0} for model in last.health.models]
        # Still live: another worker takes its place, or the process ends.
        health = replace(last.health, is_live=True, is_ready=False, models=models)
        write(slots, number, replace(last, health=health, families=[], past=past_of(last)))


def past_of(snapshot: WorkerSnapshot) -> list[MetricFamilySum]:
    """Return all counts of a slot so far."""
    return counted([*snapshot.past, *snapshot.families])


def _is_ready(snapshot: WorkerSnapshot | None, now: float) -> bool:
    return snapshot is not None and snapshot.health.is_ready and now - snapshot.at < UNREADY_SECONDS


def _by_name(reported: Sequence[WorkerSnapshot]) -> Iterable[Sequence[Any]]:  # Any: JSON values
    """Return each model as all workers report it; during a reload some may not have it."""
    models: dict[str, list[Any]] = {}
    for model in (model for each in reported for model in each.health.models):
        models.setdefault(model["name"], []).append(model)
    return models.values()


def _config_problems(config: Mapping[str, Any] | None) -> list[bool]:  # Any: JSON values
    return [bool((config or {}).get(key)) for key in ("error", "restart_required", "new_models")]


def _combine(models: Sequence[Any]) -> dict[str, Any]:  # Any: JSON values
    worst = next((model for model in models if model["state"] != "ready"), models[0])
    return {**worst, **{count: sum(model[count] for model in models) for count in ("running", "queued")}}


def _describe(number: int, snapshot: WorkerSnapshot | None, now: float) -> dict[str, Any]:  # Any: JSON values
    if snapshot is None:
        return {"worker": number, "ready": False, "reason": "it is starting"}
    silent_seconds = round(now - snapshot.at, 1)
    is_silent = silent_seconds >= UNREADY_SECONDS
    reason = f"it has not reported for {silent_seconds} seconds" if is_silent else "its models say why"
    shown = {"worker": number, "pid": snapshot.pid, "ready": _is_ready(snapshot, now)}
    return shown if shown["ready"] else {**shown, "reason": reason}
