"""A model that dies: restarts, exit codes, the end of restarts; doubles stand for engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import ClassVar, cast

import pytest
from doubles import Double, DoubleConfig, DoubleFactory, config

from appliance.core.errors import ArtifactNotFoundError, EngineDeadError, LoadError, UnavailableError
from appliance.core.model import Model, ModelRequest, Operation, Peers
from appliance.models.manager import ModelManager
from appliance.models.model_status import ModelStatus
from appliance.models.restart_policy import RestartPolicy, RestartTracker
from appliance.models.rollout import Rollout
from appliance.models.state import State

PLAIN = ModelRequest(Operation.COMPLETION, b'{"prompt": "hi"}')

QUICK = RestartPolicy(max_deaths=3, first_pause_seconds=0.01)


class LoadableConfig(DoubleConfig):
    """Its doubles load without being told to, and each is remembered."""

    built: ClassVar[list[Double]] = []

    def build(self, peers: Peers) -> Model:
        double = Double()
        double.may_load.set()
        self.built.append(double)
        return double


class FailingConfig(LoadableConfig):
    """Its first double is well; those after it do not load."""

    def build(self, peers: Peers) -> Model:
        double = cast("Double", super().build(peers))
        double.load_fault = LoadError("no memory") if len(self.built) > 1 else None
        return double


@pytest.fixture(autouse=True)
def _forget_doubles() -> None:
    LoadableConfig.built.clear()


async def _wait_until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_true():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def _ready(*configs: DoubleConfig, restart_policy: RestartPolicy = QUICK) -> AsyncGenerator[ModelManager]:
    manager = ModelManager(config(*configs), restart_policy=restart_policy, factory=DoubleFactory())
    manager.start()
    try:
        await _wait_until(lambda: manager.is_ready)
        yield manager
    finally:
        await manager.stop()


def _is_again_ready(entry: ModelStatus, restarts: int) -> Callable[[], bool]:
    return lambda: entry.restarts == restarts and entry.state is State.READY


async def test_a_model_that_dies_is_restarted() -> None:
    """The old one is closed, another one loads the same files, and is ready after its warm-up request."""
    async with _ready(LoadableConfig(name="one", has_storage=True, on_failure="restart")) as manager:
        (entry,), first = manager.statuses, LoadableConfig.built[0]
        first.is_dead = True
        await _wait_until(_is_again_ready(entry, 1))
        reply = await manager.handle("one", PLAIN)

        assert reply.body == PLAIN.body
        assert first.closed == 1
        assert LoadableConfig.built[1].artifacts == first.artifacts != {}
        assert entry.describe()["restarts"] == 1


async def test_a_model_that_restarts_is_live_and_refuses_requests() -> None:
    """Clients get 503 with a wait and no text of the error; the other model answers."""
    configs = LoadableConfig(name="one", on_failure="restart"), LoadableConfig(name="two", on_failure="restart")
    async with _ready(*configs, restart_policy=RestartPolicy(first_pause_seconds=60)) as manager:
        entry = manager.statuses[0]
        LoadableConfig.built[0].is_dead = True
        await _wait_until(lambda: entry.state is State.RESTARTING)
        with pytest.raises(UnavailableError, match=r"'one' is restarting: see the log") as refused:
            await manager.handle("one", PLAIN)

        assert refused.value.retry_after == 5
        assert (manager.health().is_live, manager.is_ready, manager.health().has_started) == (True, False, True)
        assert (await manager.handle("two", PLAIN)).body == PLAIN.body


async def test_a_model_that_fails_to_load_again_is_not_restarted_for_ever() -> None:
    """Each failed start counts as a death; then it is failed, with the reason and the number."""
    async with _ready(FailingConfig(name="one", on_failure="restart")) as manager:
        (entry,) = manager.statuses
        LoadableConfig.built[0].is_dead = True
        await _wait_until(lambda: entry.state is State.FAILED)

        assert "no memory; not restarted after 3 deaths within" in entry.reason
        assert not manager.health().is_live
        assert entry.restarts == 2
        assert [double.closed for double in LoadableConfig.built] == [1, 1, 1]


async def test_a_model_that_dies_soon_after_each_start_is_not_restarted_for_ever() -> None:
    """A warm-up request alone does not end the row of deaths."""
    async with _ready(LoadableConfig(name="one", on_failure="restart")) as manager:
        (entry,) = manager.statuses
        for restarts in (1, 2):
            LoadableConfig.built[-1].is_dead = True
            await _wait_until(_is_again_ready(entry, restarts))
        LoadableConfig.built[-1].is_dead = True
        await _wait_until(lambda: entry.state is State.FAILED)

        assert "told to; not restarted after 3 deaths" in entry.reason


async def test_a_model_that_was_healthy_for_long_starts_a_new_row_of_deaths() -> None:
    """Unrelated deaths are no crash loop."""
    async with _ready(
        LoadableConfig(name="one", on_failure="restart"), restart_policy=RestartPolicy(2, 0, 0.01)
    ) as manager:
        (entry,) = manager.statuses
        for restarts in (1, 2, 3):
            LoadableConfig.built[-1].is_dead = True
            await _wait_until(_is_again_ready(entry, restarts))

        assert manager.health().is_live


async def test_a_first_load_that_fails_is_not_retried() -> None:
    """A missing artifact stays missing."""
    model_config = LoadableConfig(
        name="one", has_storage=True, on_failure="restart", fetch_fault=ArtifactNotFoundError("nothing")
    )
    manager = ModelManager(config(model_config), restart_policy=QUICK, factory=DoubleFactory())
    manager.start()
    await _wait_until(lambda: manager.statuses[0].state is State.FAILED)
    await manager.stop()

    assert (manager.statuses[0].reason, manager.statuses[0].restarts) == ("nothing", 0)


async def test_a_model_may_end_the_process_with_the_exit_code_of_its_error() -> None:
    """The death of an engine and an error of storage have exit codes of their own."""
    async with _ready(LoadableConfig(name="one", on_failure="exit"), LoadableConfig(name="two")) as manager:
        LoadableConfig.built[0].is_dead = True

        await asyncio.wait_for(manager.exit_requested.wait(), 10)
        assert manager.exit_code == EngineDeadError.exit_code
        assert manager.statuses[0].state is State.FAILED

    model_config = LoadableConfig(
        name="one", has_storage=True, on_failure="exit", fetch_fault=ArtifactNotFoundError("nothing")
    )
    manager = ModelManager(config(model_config), factory=DoubleFactory())
    manager.start()
    await asyncio.wait_for(manager.exit_requested.wait(), 10)
    await manager.stop()

    assert manager.exit_code == ArtifactNotFoundError.exit_code


async def test_a_new_model_that_fails_does_not_end_the_process() -> None:
    """Whatever its `on_failure`: the old models continue."""
    model_config = LoadableConfig(
        name="one", has_storage=True, on_failure="exit", fetch_fault=ArtifactNotFoundError("nothing")
    )
    async with _ready(LoadableConfig(name="one", on_failure="exit")) as manager:
        rollout = Rollout(manager, [model_config], ["one"])
        await rollout.run(lambda: False)

        assert rollout.failed == {"one": "nothing"}
        assert manager.is_ready
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(manager.exit_requested.wait(), 0.05)


async def test_a_model_with_on_failure_stay_does_not_end_the_process() -> None:
    """Its failure is visible in the probes."""
    async with _ready(LoadableConfig(name="one")) as manager:
        LoadableConfig.built[0].is_dead = True
        await _wait_until(lambda: manager.statuses[0].state is State.FAILED)

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(manager.exit_requested.wait(), 0.05)


async def test_a_stop_ends_a_restart() -> None:
    """In the pause before it or during its load: nothing is left running."""
    async with _ready(
        LoadableConfig(name="one", on_failure="restart"), restart_policy=RestartPolicy(first_pause_seconds=60)
    ) as manager:
        LoadableConfig.built[0].is_dead = True
        await _wait_until(lambda: manager.statuses[0].state is State.RESTARTING)

    assert manager.statuses[0].state is State.STOPPED
    assert [double.closed for double in LoadableConfig.built] == [1, 1]


async def test_requests_are_answered_during_the_drain_delay() -> None:
    """Readiness is gone already; the drain ends with the last request and refuses none before."""
    async with _ready(LoadableConfig(name="one")) as manager:
        (entry,) = manager.statuses
        stream = await manager.handle("one", ModelRequest(Operation.COMPLETION, b'{"stream": true}'))
        draining = asyncio.create_task(manager.drain(60, delay=0.2))
        await _wait_until(lambda: entry.state is State.DRAINING)
        in_delay = await manager.handle("one", PLAIN)
        was_ready = manager.is_ready
        await asyncio.sleep(0.3)
        beside_the_stream = await manager.handle("one", PLAIN)
        was_done = draining.done()
        LoadableConfig.built[0].may_finish.set()
        assert not isinstance(stream.body, bytes)
        chunks = [chunk async for chunk in stream.body]
        await asyncio.wait_for(draining, 10)

        assert in_delay.body == beside_the_stream.body == PLAIN.body
        assert (was_ready, was_done) == (False, False)
        assert chunks[-1] == b"data: [DONE]\n\n"


class _Clock:
    """Time that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_pauses_grow_up_to_a_maximum() -> None:
    """1, 2, 4, ... seconds with jitter, and never more than a minute and a half."""
    deaths, pauses = RestartTracker(RestartPolicy(max_deaths=20)), []
    for _ in range(9):
        deaths.count()
        pauses.append(deaths.pause_seconds)

    bounds = [min(2.0**number, 60) for number in range(9)]
    assert all(bound / 2 <= pause <= bound * 1.5 for pause, bound in zip(pauses, bounds, strict=True))


def test_only_a_healthy_time_ends_a_row_of_deaths() -> None:
    """A load that took long does not."""
    clock = _Clock()
    deaths = RestartTracker(RestartPolicy(max_deaths=2, healthy_seconds=100), clock)
    deaths.mark_alive()
    clock.now += 10
    deaths.count()
    clock.now += 1000
    deaths.count()
    was_loop, lasted = deaths.is_loop, deaths.row_seconds
    deaths.mark_alive()
    clock.now += 100
    deaths.count()

    assert (was_loop, lasted) == (True, 1000)
    assert deaths.in_a_row == 1
