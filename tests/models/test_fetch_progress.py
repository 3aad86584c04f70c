"""Progress of a model's download."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from threading import Event

from doubles import DoubleConfig, DoubleFactory, config
from litestar.testing import TestClient
from prometheus_client.parser import text_string_to_metric_families

from appliance.config.storage import GlobalStorageConfig
from appliance.models.factory import OnPartProgress
from appliance.models.fetch import FetchProgress
from appliance.models.manager import ModelManager
from appliance.server.app import create_probe_app
from appliance.server.worker_health import ServerHealth
from appliance.storage.download import on_wait
from appliance.telemetry.recorder import RequestRecorder


class Clock:
    """Time that the test lets pass."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rate_and_remaining_time_are_those_of_the_last_seconds() -> None:
    """A download that was fast and has stalled has no rate and no remaining time."""
    clock = Clock()
    progress = FetchProgress(clock)
    for second in range(1, 11):
        clock.now += 1
        progress.update("model", second * 100 - 100, 2000)
    fast = progress.describe()
    for _ in range(40):
        clock.now += 1
        progress.update("model", 900, 2000)
    stalled = progress.describe()

    assert (fast["fetched_bytes"], fast["bytes_per_second"], fast["eta_seconds"]) == (900, 90, 12.2)
    assert (stalled["bytes_per_second"], stalled["eta_seconds"]) == (0, None)


def test_bytes_of_an_earlier_download_do_not_count_for_the_rate() -> None:
    """They count as fetched."""
    clock = Clock()
    progress = FetchProgress(clock)
    clock.now += 1
    progress.update("model", 0, None)
    progress.update("model", 5000, 10_000)
    clock.now += 1
    progress.update("model", 5200, 10_000)

    assert progress.describe() == {
        "part": "model",
        "fetched_bytes": 5200,
        "total_bytes": 10_000,
        "bytes_per_second": 100,
        "eta_seconds": 48.0,
        "retry_in_seconds": None,
    }


def test_a_wait_for_a_store_is_shown_until_it_ends() -> None:
    """Of several requests that wait, the last one counts."""
    clock = Clock()
    progress = FetchProgress(clock)
    progress.wait(60)
    progress.wait(20)
    clock.now += 15
    waiting = progress.describe()
    clock.now += 45

    assert waiting["retry_in_seconds"] == 45
    assert progress.describe()["retry_in_seconds"] is None


def test_the_parts_of_a_download_add_up() -> None:
    """The total is unknown while the size of one part is."""
    progress = FetchProgress(Clock())
    progress.update("model", 100, 100)
    progress.update("adapter x", 5, None)
    before = progress.describe()
    progress.update("adapter x", 5, 20)

    assert (before["part"], before["fetched_bytes"], before["total_bytes"]) == ("adapter x", 105, None)
    assert progress.describe()["total_bytes"] == 120


class WaitingConfig(DoubleConfig):
    """The config of a double whose store asks to be left alone for a minute."""

    def materialize(self, storage: GlobalStorageConfig, on_progress: OnPartProgress) -> Mapping[str, Path]:
        on_wait.get()(60)
        return super().materialize(storage, on_progress)


async def test_probes_show_how_long_a_download_waits() -> None:
    """A wait for the end of a rate limit is no stall."""
    may_fetch = Event()
    one = WaitingConfig(name="one", has_storage=True, may_fetch=may_fetch)
    manager = ModelManager(config(one), factory=DoubleFactory())
    manager.start()
    try:
        progress = FetchProgress()
        while not progress.part:
            await asyncio.sleep(0.01)
            progress = manager.statuses[0].progress or progress
    finally:
        may_fetch.set()
        await manager.stop()

    assert 0 < progress.describe()["retry_in_seconds"] <= 60


def test_metrics_have_bytes_and_rate_of_each_model() -> None:
    """They are those of readiness, by model; a model without a download has none."""
    manager = ModelManager(config(DoubleConfig(name="one"), DoubleConfig(name="two")), factory=DoubleFactory())
    manager.statuses[0].progress = FetchProgress(Clock())
    manager.statuses[0].progress.update("model", 50, 200)

    with TestClient(create_probe_app(manager, ServerHealth(manager), RequestRecorder(manager.config))) as client:
        text = client.get("/metrics").text
    samples = {
        sample.name: (sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("appliance_fetch")
    }

    assert samples == {
        "appliance_fetched_bytes": ({"model": "one"}, 50),
        "appliance_fetch_total_bytes": ({"model": "one"}, 200),
        "appliance_fetch_bytes_per_second": ({"model": "one"}, 0),
    }
