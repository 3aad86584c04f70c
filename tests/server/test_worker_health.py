"""What a worker tells about all of them."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from doubles import DoubleFactory, config
from prometheus_client import REGISTRY, Gauge

from appliance.core.shared_traffic import SharedTraffic
from appliance.models.health import HealthReport
from appliance.models.manager import ModelManager
from appliance.server.shared_memory import SharedSlots
from appliance.server.worker_health import MultiWorkerHealth, WorkerInfo, WorkerSnapshot, mark_dead, read, write

GOOD = HealthReport(
    True, True, True, 1, [{"name": "one", "state": "ready", "reason": "it answered", "running": 2, "queued": 1}]
)


def _snapshot(report: HealthReport = GOOD, *, seconds_ago: float = 0) -> WorkerSnapshot:
    return WorkerSnapshot(pid=7, at=time.monotonic() - seconds_ago, health=report, families=[], past=[])


@pytest.fixture
def slots() -> SharedSlots:
    """Three slots, whose second and third workers are well."""
    slots = SharedSlots(3)
    for number in (1, 2):
        write(slots, number, _snapshot())
    return slots


class _ReadyManager(ModelManager):
    """A lifecycle whose model is ready, though nobody loaded it."""

    @property
    def is_ready(self) -> bool:
        return True

    def health(self) -> HealthReport:
        return GOOD


@pytest.fixture
def health(slots: SharedSlots) -> MultiWorkerHealth:
    """The outlook of the first worker, which is well too."""
    health = MultiWorkerHealth(_ReadyManager(config(), factory=DoubleFactory()), WorkerInfo(0, slots, SharedTraffic(2)))
    health.publish()
    return health


def test_all_is_well_where_each_is(health: MultiWorkerHealth) -> None:
    """And what runs is the sum."""
    report = health.report()

    assert (report.is_live, report.is_ready, report.has_started) == (True, True, True)
    assert (report.models[0]["running"], report.models[0]["queued"]) == (6, 3)
    assert [worker["ready"] for worker in report.workers] == [True] * 3


def test_a_model_is_shown_where_it_stands_worst(health: MultiWorkerHealth, slots: SharedSlots) -> None:
    """One worker that is not ready is enough."""
    bad = {**GOOD.models[0], "state": "failed", "reason": "it broke", "running": 0, "queued": 0}
    write(slots, 2, _snapshot(replace(GOOD, is_live=False, is_ready=False, retry_after=30, models=[bad])))
    report = health.report()

    assert (report.is_live, report.is_ready, report.retry_after) == (False, False, 30)
    assert (report.models[0]["state"], report.models[0]["reason"]) == ("failed", "it broke")
    assert [worker["ready"] for worker in report.workers] == [True, True, False]


def test_nobody_is_ready_before_each_was_heard() -> None:
    """A worker that never said anything is starting."""
    health = MultiWorkerHealth(
        _ReadyManager(config(), factory=DoubleFactory()), WorkerInfo(0, SharedSlots(2), SharedTraffic(2))
    )
    health.publish()
    report = health.report()

    assert (report.is_live, report.is_ready, report.has_started) == (True, False, False)
    assert report.models[0]["state"] == "pending"
    assert report.workers[1]["reason"] == "it is starting"


@pytest.mark.parametrize(("seconds", "is_live"), [(7, True), (40, False)])
def test_a_worker_that_hangs_is_noticed(
    health: MultiWorkerHealth, slots: SharedSlots, seconds: float, is_live: bool
) -> None:
    """Silent for a while it is not ready; silent for long it will not come back, and the platform must know."""
    write(slots, 1, _snapshot(seconds_ago=seconds))
    report = health.report()

    assert (report.is_ready, report.is_live) == (False, is_live)
    assert f"has not reported for {seconds}" in report.workers[1]["reason"]


def test_the_others_answer_for_a_dead_worker(health: MultiWorkerHealth, slots: SharedSlots) -> None:
    """It takes no connections, nor does the one in its place before it says so; without others nothing is ready."""
    mark_dead(slots, 1)
    last = read(slots, 1)
    report = health.report()

    assert last is not None
    assert last.health.models[0]["state"] == "pending"
    assert (report.is_ready, report.has_started, report.models[0]["state"]) == (True, True, "ready")
    assert [worker["ready"] for worker in report.workers] == [True, False, True]
    assert report.workers[1]["reason"] == "it takes the place of a worker that died, and loads"
    write(slots, 1, replace(last, accepts=True))
    assert not health.report().is_ready
    for number in (0, 1, 2):
        mark_dead(slots, number)
    assert not health._report().is_ready


def test_a_worker_that_left_takes_no_liveness_with_it(health: MultiWorkerHealth, slots: SharedSlots) -> None:
    """The last it said is that its models stopped; another takes its place."""
    write(slots, 1, _snapshot(replace(GOOD, is_live=False, is_ready=False)))
    assert not health.report().is_live
    mark_dead(slots, 1)

    assert health.report().is_live


def test_metrics_that_do_not_fit_are_dropped_and_probes_stay(health: MultiWorkerHealth, slots: SharedSlots) -> None:
    """A million series are a fault of somebody's; not being ready is not one."""
    series = Gauge("flood", "Too much.", ["text"])
    try:
        series.labels("x" * (9 << 20)).set(1)
        health.publish()

        assert health.report().is_ready
        last = read(slots, 0)
        assert last is not None
        assert list(last.families) == []
    finally:
        REGISTRY.unregister(series)
