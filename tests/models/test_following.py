"""How a model lives that only computes for another server, with doubles in the place of engines."""

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


class Follower(Double):
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
        return Follower()


async def _until(is_so: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not is_so():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def _following() -> AsyncGenerator[tuple[ModelManager, Follower]]:
    manager = ModelManager(config(FollowerConfig(name="one")), factory=DoubleFactory())
    manager.start()
    try:
        await _until(lambda: manager.is_ready)
        model = manager.statuses[0].model
        assert isinstance(model, Follower)
        yield manager, model
    finally:
        await manager.stop()


async def test_a_follower_is_ready_and_says_what_it_does() -> None:
    """It does its part, so the probes are good; its state is not that of a model that answers."""
    async with _following() as (manager, _):
        (shown,) = manager.health().models

        assert (shown["state"], shown["reason"]) == ("following", "computes for rank 0 at lead, which answers")
        assert manager.has_started


async def test_a_follower_refuses_calls_and_says_who_answers() -> None:
    """A client that came to the wrong server learns which is the right one."""
    async with _following() as (manager, _):
        with pytest.raises(UnavailableError, match="following: computes for rank 0 at lead, which answers"):
            await manager.handle("one", PLAIN)


async def test_a_follower_fails_when_the_other_server_goes() -> None:
    """What it computes is good for nothing then."""
    async with _following() as (manager, model):
        model.is_dead = True
        await _until(lambda: manager.statuses[0].state is State.FAILED)

        assert not manager.is_live


async def test_a_follower_drains_until_the_other_server_has_gone() -> None:
    """Both are told to end at the same time, and the other one has calls under way; its end is no failure then."""
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


async def test_a_follower_is_replaced_like_a_model_that_answers() -> None:
    """With a new config the new one takes the place of the old one."""
    async with _following() as (manager, old):
        new = FollowerConfig(name="one", has_storage=True)
        succession = Rollout(manager, [new], ["one"])
        old.is_dead = True
        await asyncio.wait_for(succession.run(lambda: False), 10)

        assert succession.failed == {}
        assert manager.statuses[0].config is new
        assert manager.statuses[0].state is State.FOLLOWING
