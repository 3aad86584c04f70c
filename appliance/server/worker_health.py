"""
What this process tells about the appliance: about itself where it is the only one, about all workers where it is one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from appliance.server.multiprocess_metrics import MetricFamilySum, counted, merged
from appliance.server.shared_memory import SharedSlots
from appliance.server.watchdog import UNREADY_SECONDS

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# How a model stands in a worker that is not there yet.
_STARTING = {"state": State.PENDING.value, "reason": "a worker is starting"}


class HealthProvider(Protocol):
    """Where the appliance stands, and its metrics."""

    def standing(self) -> HealthReport:
        """What probes are told."""

    def metrics(self) -> Iterable[Metric]:
        """What a scrape gets."""


class WorkerHealthFile(HealthProvider, Protocol):
    """The outlook as it was published last; any thread may read it."""

    def publish(self) -> None:
        """Take in where the models of this process stand now; for the event loop that owns them alone."""


class SingleProcessHealth:
    """The outlook of the only process."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager
        self._stall_seconds = manager.config.server.stall_seconds
        self.publish()

    def publish(self) -> None:
        self._published = time.monotonic(), self._manager.health(), of_models(self._manager)

    def standing(self) -> HealthReport:
        at, standing, _ = self._published
        silent = time.monotonic() - at
        if silent < min(UNREADY_SECONDS, self._stall_seconds):
            return standing
        return replace(
            standing,
            is_live=standing.is_live and silent < self._stall_seconds,
            is_ready=False,
            reason=f"the event loop has been blocked for {silent:.0f} seconds; the log says by what",
        )

    def metrics(self) -> Iterable[Metric]:
        yield from REGISTRY.collect()
        yield from self._published[2]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a worker says about itself; `at` is on the clock that all processes of a machine share."""

    pid: int
    at: float
    standing: HealthReport
    families: Sequence[MetricFamilySum]
    past: Sequence[MetricFamilySum]
    """What those counted that had the slot before it, and died."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """The place of one worker among all."""

    number: int
    slots: SharedSlots
    folder: Path | None = None
    """Where workers meet that share engines; None where there are none."""

    @property
    def front_end(self) -> FrontEnd:
        """The same, for models."""
        return FrontEnd(self.number, self.slots.count, self.folder)


class MultiWorkerHealth:
    """The outlook of one worker among others: its own news, and what the others said last."""

    def __init__(self, manager: ModelManager, seat: WorkerInfo) -> None:
        self._manager = manager
        self._seat = seat
        before = read(seat.slots, seat.number)
        self._past = past_of(before) if before else []
        self._stall_seconds = manager.config.server.stall_seconds

    def publish(self) -> None:
        """Say where this worker stands, so that the others see no less than is shown here."""
        try:
            families = [MetricFamilySum.of(metric) for metric in (*REGISTRY.collect(), *of_models(self._manager))]
        except Exception as error:
            log.error("metrics.dropped", reason=type(error).__name__)
            families = []
        own = Snapshot(os.getpid(), time.monotonic(), self._manager.health(), families, self._past)
        try:
            write(self._seat.slots, self._seat.number, own)
        except ValueError as error:
            # Too many series for a slot: probes matter more.
            log.error("metrics.dropped", reason=str(error))
            write(self._seat.slots, self._seat.number, replace(own, families=[], past=[]))

    def standing(self) -> HealthReport:
        """Good is what is good in every worker; a model is shown where it stands worst."""
        heard = list(self._heard())
        now = time.monotonic()
        seen = [snapshot for snapshot in heard if snapshot is not None]
        models = [_together(models) for models in _by_name(seen)]
        if len(seen) < len(heard):
            models = [{**model, **_STARTING} for model in models]
        return HealthReport(
            is_live=all(each.standing.is_live and now - each.at < self._stall_seconds for each in seen),
            is_ready=all(_is_ready(each, now) for each in heard),
            has_started=all(each is not None and each.standing.has_started for each in heard),
            # Before any of them said a word there is none.
            retry_after=max((each.standing.retry_after for each in seen), default=1),
            models=models,
            config=max((each.standing.config for each in seen), key=_trouble, default=None),
            workers=[_shown(number, each, now) for number, each in enumerate(heard)],
        )

    def metrics(self) -> Iterator[Metric]:
        """Counts are summed over all workers, the dead ones too; anything else has the number of its worker."""
        heard = {number: each for number, each in enumerate(self._heard()) if each is not None}
        return merged({number: (each.families, each.past) for number, each in heard.items()})

    def _heard(self) -> Iterator[Snapshot | None]:
        return (read(self._seat.slots, number) for number in range(self._seat.slots.count))


def read(slots: SharedSlots, number: int) -> Snapshot | None:
    """What the worker of this number said last; None when it never did."""
    said = slots.read(number)
    return None if said is None else msgspec.msgpack.decode(said, type=Snapshot)


def write(slots: SharedSlots, number: int, snapshot: Snapshot) -> None:
    """Put what a worker says in its slot."""
    slots.write(number, msgspec.msgpack.encode(snapshot))


def mark_dead(slots: SharedSlots, number: int) -> None:
    """Have a slot say that its worker is dead, and keep what it counted."""
    last = read(slots, number)
    if last is not None:
        models = [{**model, **_STARTING, "running": 0, "queued": 0} for model in last.standing.models]
        # Live: another takes its place, or the process ends with it.
        standing = replace(last.standing, is_live=True, is_ready=False, models=models)
        write(slots, number, replace(last, standing=standing, families=[], past=past_of(last)))


def past_of(snapshot: Snapshot) -> list[MetricFamilySum]:
    """All that was counted in a slot so far."""
    return counted([*snapshot.past, *snapshot.families])


def _is_ready(snapshot: Snapshot | None, now: float) -> bool:
    return snapshot is not None and snapshot.standing.is_ready and now - snapshot.at < UNREADY_SECONDS


def _by_name(seen: Sequence[Snapshot]) -> Iterable[Sequence[Any]]:  # Any: JSON values
    """Each model as all workers show it; while the config changes, some may not have it."""
    models: dict[str, list[Any]] = {}
    for model in (model for each in seen for model in each.standing.models):
        models.setdefault(model["name"], []).append(model)
    return models.values()


def _trouble(config: Mapping[str, Any] | None) -> list[bool]:  # Any: JSON values
    return [bool((config or {}).get(key)) for key in ("error", "restart_required", "new_models")]


def _together(models: Sequence[Any]) -> dict[str, Any]:  # Any: JSON values
    worst = next((model for model in models if model["state"] != "ready"), models[0])
    return {**worst, **{count: sum(model[count] for model in models) for count in ("running", "queued")}}


def _shown(number: int, snapshot: Snapshot | None, now: float) -> dict[str, Any]:  # Any: JSON values
    if snapshot is None:
        return {"worker": number, "ready": False, "reason": "it is starting"}
    silent = round(now - snapshot.at, 1)
    reason = f"it has said nothing for {silent} seconds" if silent >= UNREADY_SECONDS else "its models say why"
    shown = {"worker": number, "pid": snapshot.pid, "ready": _is_ready(snapshot, now)}
    return shown if shown["ready"] else {**shown, "reason": reason}
