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
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import structlog
from prometheus_client import REGISTRY
from prometheus_client.core import Metric

from appliance.api.metrics import of_models
from appliance.core.model import FrontEnd
from appliance.core.shared_traffic import SharedTraffic
from appliance.models.health import HealthReport
from appliance.models.manager import ModelManager
from appliance.models.state import State
from appliance.server.event_loop_watchdog import UNREADY_SECONDS
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

_CONFIG_PROBLEMS = ("error", "restart_required", "new_models")

# Only metrics that grow can be summed; of all others each process has a value of its own.
_SUMMED = frozenset({"counter", "histogram", "summary"})


class ServerHealth:
    """The health and the metrics of the only process; any thread may read them."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager
        self._stall_seconds = manager.config.server.stall_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._is_answered = threading.Event()
        self._is_answered.set()
        self._published = time.monotonic(), manager.health(), of_models(manager)

    @asynccontextmanager
    async def published(self) -> AsyncGenerator[None]:
        """Publish again and again in the block, and a last time; readers in other threads ask this event loop to."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        task = asyncio.create_task(self._publish_forever())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self.publish()

    def report(self) -> HealthReport:
        """Return the health for probes."""
        self._refresh()
        return self._report()

    def metrics(self) -> Iterable[Metric]:
        """Return the metrics for a scrape."""
        self._refresh()
        return self._metrics()

    def publish(self) -> None:
        """Publish the health of this process; to be called in the event loop that owns the models."""
        self._published = time.monotonic(), self._manager.health(), of_models(self._manager)

    def _report(self) -> HealthReport:
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

    def _metrics(self) -> Iterable[Metric]:
        return [*REGISTRY.collect(), *self._published[2]]

    async def _publish_forever(self) -> None:
        while True:
            self.publish()
            await asyncio.sleep(_PUBLISH_SECONDS if self._manager.is_ready else _PUBLISH_SECONDS_UNREADY)

    def _refresh(self) -> None:
        """Publish; another thread waits for the event loop to do it, unless the loop still owes an earlier answer."""
        if self._loop is None or threading.get_ident() == self._thread:
            self.publish()
        elif self._is_answered.is_set():
            self._is_answered.clear()
            # The loop may be closed already.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._answer)
                self._is_answered.wait(_REFRESH_SECONDS)

    def _answer(self) -> None:
        try:
            self.publish()
        finally:
            self._is_answered.set()


@dataclass(slots=True)
class MetricFamily:
    """A metric family of one process, or the sum of those of several.

    `values` have sample names and labels for keys. A value with a time belongs to something that all processes share.
    """

    name: str
    documentation: str
    type: str
    values: dict[tuple[str, tuple[tuple[str, str], ...]], tuple[float | None, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, metric: Metric) -> MetricFamily:
        """Return a family that prometheus_client collected."""
        values = {
            (each.name, tuple(each.labels.items())): (
                None if each.timestamp is None else float(each.timestamp),
                float(each.value),
            )
            for each in metric.samples
        }
        return cls(metric.name, metric.documentation, metric.type, values)

    def add(self, other: MetricFamily, worker: int | None) -> None:
        """Sum counts, take the latest of shared values, and label all others with the number of the worker."""
        for (name, labels), (at, value) in other.values.items():
            is_shared = at is not None or self.type in _SUMMED
            key = name, labels if is_shared else (*labels, ("worker", str(worker)))
            before_at, before = self.values.get(key, (None, None))
            if before is None:
                self.values[key] = at, value
            elif at is not None:
                self.values[key] = max((before_at or 0.0, before), (at, value))
            elif name.endswith("_created"):
                self.values[key] = at, min(before, value)
            else:
                self.values[key] = at, before + value

    def metric(self) -> Metric:
        """Return the family as prometheus_client has it."""
        metric = Metric(self.name, self.documentation, self.type)
        for (name, labels), (_, value) in self.values.items():
            metric.add_sample(name, dict(labels), value)
        return metric


def merged(families: Iterable[tuple[int | None, MetricFamily]]) -> list[MetricFamily]:
    """Return one family for each name, given families with the numbers of their workers."""
    sums: dict[str, MetricFamily] = {}
    for worker, each in families:
        sums.setdefault(each.name, MetricFamily(each.name, each.documentation, each.type)).add(each, worker)
    return list(sums.values())


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """The health and the metrics of one worker; `at` is on the clock that all processes of a machine share."""

    pid: int
    at: float
    health: HealthReport
    families: Sequence[MetricFamily]
    past: Sequence[MetricFamily]
    """Counts of the workers that had this slot before, and died."""
    accepts: bool = True
    """Whether it accepts connections; one that takes the place of a dead worker does so once its models are loaded."""

    def counts(self) -> list[MetricFamily]:
        """Return all counts of the slot so far, which remain when the worker has ended."""
        return merged((None, each) for each in (*self.past, *self.families) if each.type in _SUMMED)


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One of several workers."""

    number: int
    slots: SharedSlots
    traffic: SharedTraffic
    folder: Path | None = None
    """Directory in which workers that share engines meet; None if there are none."""
    memory_folder: Path | None = None
    """Private directory of what the workers store in memory; None if they store nothing there."""

    @property
    def front_end(self) -> FrontEnd:
        """This worker as the models see it."""
        return FrontEnd(self.number, self.slots.count, self.folder, self.traffic)


class MultiWorkerHealth(ServerHealth):
    """The health of all workers: that of this one, and what the others published last."""

    def __init__(self, manager: ModelManager, worker: WorkerInfo) -> None:
        super().__init__(manager)
        self._worker = worker
        before = read(worker.slots, worker.number)
        self._past = before.counts() if before else []
        self._accepts = before is None

    async def wait_until_loaded(self) -> None:
        """In the place of a dead worker, wait until the models are loaded; from then on connections are accepted."""
        await self._manager.wait_until_loaded()
        self._accepts = True
        self.publish()

    def publish(self) -> None:
        """Write this worker's health and metrics to its slot."""
        try:
            families = [MetricFamily.of(metric) for metric in (*REGISTRY.collect(), *of_models(self._manager))]
        except Exception as error:
            log.error("metrics.dropped", reason=type(error).__name__)
            families = []
        health = self._manager.health()
        own = WorkerSnapshot(os.getpid(), time.monotonic(), health, families, self._past, self._accepts)
        try:
            write(self._worker.slots, self._worker.number, own)
        except ValueError as error:
            # Too many series for a slot; probes matter more.
            log.error("metrics.dropped", reason=str(error))
            write(self._worker.slots, self._worker.number, replace(own, families=[], past=[]))

    def _report(self) -> HealthReport:
        """Return what holds in every worker that accepts connections; of each model the worst state."""
        snapshots = list(self._snapshots())
        now = time.monotonic()
        reported = [snapshot for snapshot in snapshots if snapshot is not None]
        accepting = [each for each in snapshots if each is None or each.accepts] or snapshots
        models = _combine([each for each in accepting if each is not None])
        if None in accepting:
            models = [{**model, **_STARTING} for model in models]
        return HealthReport(
            is_live=all(each.health.is_live and now - each.at < self._stall_seconds for each in reported),
            is_ready=all(_is_ready(each, now) for each in accepting),
            has_started=all(each is not None and each.health.has_started for each in accepting),
            # Before the first report there is none.
            retry_after=max((each.health.retry_after for each in reported), default=1),
            models=models,
            # The one with the most problems.
            config=max(
                (each.health.config for each in reported),
                key=lambda config: [bool((config or {}).get(key)) for key in _CONFIG_PROBLEMS],
                default=None,
            ),
            workers=[_describe(number, each, now) for number, each in enumerate(snapshots)],
        )

    def _metrics(self) -> Iterable[Metric]:
        """Return counts summed over all workers, including dead ones; all else is labelled with the worker's number."""
        numbered = (
            (number, family)
            for number, each in enumerate(self._snapshots())
            if each is not None
            for family in (*each.families, *each.past)
        )
        return [family.metric() for family in merged(numbered)]

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
        write(slots, number, replace(last, health=health, families=[], past=last.counts(), accepts=False))


def _is_ready(snapshot: WorkerSnapshot | None, now: float) -> bool:
    return snapshot is not None and snapshot.health.is_ready and now - snapshot.at < UNREADY_SECONDS


def _combine(reported: Sequence[WorkerSnapshot]) -> list[dict[str, Any]]:  # Any: JSON values
    """Return the worst state of each model, and the sums of its requests; during a reload some may not have it."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for model in (model for each in reported for model in each.health.models):
        by_name.setdefault(model["name"], []).append(model)
    return [
        {
            **next((model for model in models if model["state"] != "ready"), models[0]),
            **{count: sum(model[count] for model in models) for count in ("running", "queued")},
        }
        for models in by_name.values()
    ]


def _describe(number: int, snapshot: WorkerSnapshot | None, now: float) -> dict[str, Any]:  # Any: JSON values
    if snapshot is None:
        return {"worker": number, "ready": False, "reason": "it is starting"}
    shown = {"worker": number, "pid": snapshot.pid, "ready": _is_ready(snapshot, now)}
    if shown["ready"]:
        return shown
    silent_seconds = round(now - snapshot.at, 1)
    is_silent = silent_seconds >= UNREADY_SECONDS
    reason = f"it has not reported for {silent_seconds} seconds" if is_silent else "its models say why"
    return {**shown, "reason": reason if snapshot.accepts else "it takes the place of a worker that died, and loads"}
