"""A model that computes for another machine; doubles stand for engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest
from doubles import Double, DoubleConfig, DoubleFactory, config

from appliance.core.errors import UnavailableError
from appliance.core.model import Model, ModelRequest, Operation, Peers
from appliance.models.manager import ModelManager
from appliance.models.rollout import Rollout
from appliance.models.state import State

PLAIN = ModelRequest(Operation.COMPLETION, b'{"prompt": "hi"}')


class FollowerDouble(Double):
    """A double that another server asks, until the test says that it is gone."""

    leader = "rank 0 at lead"

    def __init__(self) -> None:
        super().__init__(warmup_request=None)
        self.may_load.set()

    @property
    def is_needed(self) -> bool:
        """The other server is there as long as this one is not dead."""
        return not self.is_dead


class FollowerConfig(DoubleConfig):
    """Declares one."""

    def build(self, peers: Peers) -> Model:
        return FollowerDouble()


async def _wait_until(is_true: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not is_true():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def _following() -> AsyncGenerator[tuple[ModelManager, FollowerDouble]]:
    manager = ModelManager(config(FollowerConfig(name="one")), factory=DoubleFactory())
    manager.start()
    try:
        await _wait_until(lambda: manager.is_ready)
        model = manager.statuses[0].model
        assert isinstance(model, FollowerDouble)
        yield manager, model
    finally:
        await manager.stop()


async def test_a_worker_node_is_ready_in_a_state_of_its_own() -> None:
    """Probes are good, and name the machine that it computes for."""
    async with _following() as (manager, _):
        (shown,) = manager.health().models

        assert (shown["state"], shown["reason"]) == ("following", "computes for rank 0 at lead, which answers")
        assert manager.health().has_started


async def test_a_worker_node_refuses_requests_and_names_the_leader() -> None:
    """The error says which machine answers."""
    async with _following() as (manager, _):
        with pytest.raises(UnavailableError, match="following: computes for rank 0 at lead, which answers"):
            await manager.handle("one", PLAIN)


async def test_a_worker_node_fails_when_the_leader_goes() -> None:
    """Nothing uses what it computes then."""
    async with _following() as (manager, model):
        model.is_dead = True
        await _wait_until(lambda: manager.statuses[0].state is State.FAILED)

        assert not manager.health().is_live


async def test_a_worker_node_drains_until_the_leader_has_gone() -> None:
    """Both get SIGTERM at the same time, and the leader still has requests; its end is no failure then."""
    async with _following() as (manager, model):
        draining = asyncio.create_task(manager.drain(60))
        # Longer than the watch takes to look.
        await asyncio.sleep(0.7)
        was_draining = not draining.done()
        model.is_dead = True
        await asyncio.wait_for(draining, 10)
        await asyncio.sleep(0.7)

        assert was_draining
        assert manager.statuses[0].state is State.DRAINING


async def test_a_worker_node_is_replaced_by_a_new_config() -> None:
    """The new one takes the place of the old one."""
    async with _following() as (manager, old):
        new = FollowerConfig(name="one", has_storage=True)
        rollout = Rollout(manager, [new], ["one"])
        old.is_dead = True
        await asyncio.wait_for(rollout.run(lambda: False), 10)

        assert rollout.failed == {}
        assert manager.statuses[0].config is new
        assert manager.statuses[0].state is State.FOLLOWING
