"""Two changes of one model at the same time; doubles stand for engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
from doubles import Double, DoubleFactory, RemoteConfig, config

from appliance.config.limits import LimitsConfig
from appliance.core.errors import UnavailableError
from appliance.core.model import Model, ModelRequest, Operation, Peers
from appliance.models.manager import ModelManager
from appliance.models.model_status import ModelStatus
from appliance.models.restart_policy import RestartPolicy
from appliance.models.rollout import Rollout
from appliance.models.state import State

PLAIN = ModelRequest(Operation.COMPLETION, b'{"prompt": "hi"}')
WAITING = ModelRequest(Operation.COMPLETION, b'{"prompt": "wait"}')


class SlowDouble(Double):
    """Takes its time to say how it is, and to close, where the test wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.may_load.set()
        self.may_check, self.may_close = asyncio.Event(), asyncio.Event()
        self.may_check.set()
        self.may_close.set()
        self.is_asked = False
        self.loads = 0

    async def load(self, artifacts: Any) -> None:
        """Counts."""
        self.loads += 1
        await super().load(artifacts)

    async def check(self) -> None:
        """As any double, later."""
        self.is_asked = True
        await self.may_check.wait()
        await super().check()

    async def close(self) -> None:
        """As any double, later."""
        await self.may_close.wait()
        await super().close()


class SlowConfig(RemoteConfig):
    """Declares one, and remembers each."""

    built: ClassVar[list[SlowDouble]] = []

    def build(self, peers: Peers) -> Model:
        self.built.append(SlowDouble())
        return self.built[-1]


@pytest.fixture(autouse=True)
def _forget_doubles() -> None:
    SlowConfig.built.clear()


async def _wait_until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_true():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def _ready(pause_seconds: float = 60, **model_config: Any) -> AsyncGenerator[tuple[ModelManager, ModelStatus]]:
    configs = SlowConfig(name="one", on_failure="restart", **model_config)
    manager = ModelManager(
        config(configs), restart_policy=RestartPolicy(first_pause_seconds=pause_seconds), factory=DoubleFactory()
    )
    manager.start()
    await _wait_until(lambda: manager.is_ready)
    try:
        yield manager, manager.statuses[0]
    finally:
        await manager.stop()


async def test_requests_queued_for_a_model_that_died_are_refused() -> None:
    """They get 503 with a wait, as new requests do."""
    async with _ready(limits=LimitsConfig(concurrent=1)) as (manager, entry):
        first = asyncio.create_task(manager.handle("one", WAITING))
        await _wait_until(lambda: entry.running == 1)
        second = asyncio.create_task(manager.handle("one", PLAIN))
        await _wait_until(lambda: entry.queue.queued == 1)
        SlowConfig.built[0].is_dead = True
        await _wait_until(lambda: len(SlowConfig.built) == 2)
        SlowConfig.built[0].may_finish.set()

        await first
        with pytest.raises(UnavailableError, match="'one' is restarting") as refused:
            await second
        assert refused.value.retry_after == 5
        assert (entry.running, entry.queue.running) == (0, 0)


async def test_a_drain_answers_queued_requests() -> None:
    """New requests are refused."""
    async with _ready(limits=LimitsConfig(concurrent=1)) as (manager, entry):
        first = asyncio.create_task(manager.handle("one", WAITING))
        await _wait_until(lambda: entry.running == 1)
        second = asyncio.create_task(manager.handle("one", PLAIN))
        await _wait_until(lambda: entry.queue.queued == 1)
        draining = asyncio.create_task(manager.drain(60))
        await _wait_until(lambda: entry.state is State.DRAINING)
        with pytest.raises(UnavailableError):
            await manager.handle("one", PLAIN)
        SlowConfig.built[0].may_finish.set()

        assert [reply.body for reply in await asyncio.gather(first, second)] == [WAITING.body, PLAIN.body]
        await asyncio.wait_for(draining, 10)


async def test_a_model_that_restarts_during_a_drain_drains_too() -> None:
    """Its reason is that of the other models."""
    async with _ready(pause_seconds=0.2) as (manager, entry):
        SlowConfig.built[0].is_dead = True
        await _wait_until(lambda: entry.state is State.RESTARTING)
        await manager.drain(0)
        await _wait_until(lambda: entry.state is State.DRAINING)

        with pytest.raises(UnavailableError, match="the server is stopping"):
            await manager.handle("one", PLAIN)


async def test_a_model_is_loaded_again_only_after_it_was_closed() -> None:
    """A load during the unload returns with the new model ready."""
    async with _ready() as (manager, entry):
        old = SlowConfig.built[0]
        old.may_close.clear()
        unloading = asyncio.create_task(manager.unload("one"))
        await _wait_until(lambda: entry.state is State.UNLOADED)
        loading = asyncio.create_task(manager.load("one"))
        await asyncio.sleep(0.05)
        old.may_close.set()
        await asyncio.gather(unloading, loading)

        assert entry.state is State.READY
        assert entry.model is SlowConfig.built[1]
        assert [each.loads for each in SlowConfig.built] == [1, 1]


async def test_a_model_that_is_unloaded_during_a_health_check_has_not_died() -> None:
    """A late result is ignored, and the next model is watched."""
    async with _ready() as (manager, entry):
        old = SlowConfig.built[0]
        old.may_check.clear()
        old.is_asked = False
        await _wait_until(lambda: old.is_asked)
        await manager.unload("one")
        old.is_dead = True
        old.may_check.set()
        await manager.load("one")
        SlowConfig.built[1].is_dead = True

        await _wait_until(lambda: entry.state is State.RESTARTING)


async def test_the_count_of_restarts_survives_a_new_config() -> None:
    """A counter must not go back."""
    async with _ready(pause_seconds=0.01) as (manager, entry):
        SlowConfig.built[0].is_dead = True
        await _wait_until(lambda: entry.restarts == 1 and entry.state is State.READY)
        await Rollout(manager, [SlowConfig(name="one", aliases=("uno",))], ["one"]).run(lambda: False)

        assert manager.find("uno").restarts == 1
