"""Timings of a model's load, and the part of it that needs no files."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from doubles import Double, DoubleConfig, DoubleFactory, config
from structlog.testing import capture_logs

from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import MissingExtraError
from appliance.models.manager import ModelManager
from appliance.models.model_status import LoadTimings
from appliance.models.state import State


async def _wait_until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_true():
            await asyncio.sleep(0.01)


def _double(manager: ModelManager) -> Double:
    return cast("Double", manager.statuses[0].model)


@asynccontextmanager
async def _started(model_config: DoubleConfig) -> AsyncGenerator[ModelManager]:
    manager = ModelManager(
        config(model_config).model_copy(update={"storage": GlobalStorageConfig(cache_dir=Path("/kept"))}),
        factory=DoubleFactory(),
    )
    try:
        yield manager
    finally:
        await manager.stop()


async def test_a_model_prepares_during_its_download() -> None:
    """The part of the load that needs no files starts at once, and knows the cache directory."""
    may_fetch = threading.Event()
    async with _started(DoubleConfig(name="one", has_storage=True, may_fetch=may_fetch)) as manager:
        manager.start()
        await _wait_until(lambda: bool(_double(manager).prepared))
        state = manager.statuses[0].state
        may_fetch.set()
        await _wait_until(lambda: manager.statuses[0].state is State.LOADING)

        assert state is State.FETCHING
        assert _double(manager).prepared == [Path("/kept")]


async def test_nothing_is_downloaded_if_a_required_package_is_missing() -> None:
    """The load fails before the first byte."""
    async with _started(DoubleConfig(name="one", has_storage=True)) as manager:
        _double(manager).prepare_fault = MissingExtraError("vllm", "gpu", "the model 'one'")
        manager.start()
        await _wait_until(lambda: manager.statuses[0].state is State.FAILED)

        assert "model-appliance[gpu]" in manager.statuses[0].reason
        assert manager.statuses[0].progress is None


async def test_the_log_and_the_probes_have_the_timings_of_a_load() -> None:
    """Both have the seconds of each phase, their sum, and the parts that the model measures."""
    async with _started(DoubleConfig(name="one", has_storage=True)) as manager:
        _double(manager).may_load.set()
        with capture_logs() as logs:
            manager.start()
            await _wait_until(lambda: manager.is_ready)
        shown = manager.statuses[0].describe()["load"]
        (told,) = [each for each in logs if each["event"] == "model.loaded"]

        assert list(shown["phases"]) == ["pending", "fetching", "loading", "proving"]
        assert shown["parts"] == {"weights": 1.5}
        assert {name: told[name] for name in shown} == shown


def test_timings_start_again_with_a_restart() -> None:
    """Those of an earlier load, and the time after a load, are not included."""
    now = 0.0
    phases = LoadTimings(lambda: now)
    for state, seconds in ((State.FETCHING, 1), (State.LOADING, 2), (State.PROVING, 3), (State.READY, 4)):
        now += seconds
        phases.enter(state)
    first = phases.seconds()
    now += 100
    phases.enter(State.RESTARTING)
    now += 5
    phases.enter(State.LOADING)
    now += 6

    assert first == {State.PENDING: 1, State.FETCHING: 2, State.LOADING: 3, State.PROVING: 4}
    assert phases.seconds() == {State.LOADING: 6}
