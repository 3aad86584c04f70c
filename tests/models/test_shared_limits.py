"""Workers share the concurrency of an engine."""

from __future__ import annotations

import asyncio

from doubles import Double, DoubleConfig, DoubleFactory, config

from appliance.config.limits import LimitsConfig
from appliance.core.model import SINGLE_FRONT_END, FrontEnd, Model, Peers
from appliance.models.manager import ModelManager


class SevenSlotsDouble(Double):
    """Computes seven at once."""

    max_concurrent = 7


class SevenSlotsConfig(DoubleConfig):
    """Declares one."""

    def build(self, peers: Peers) -> Model:
        double = SevenSlotsDouble()
        double.may_load.set()
        return double


async def test_workers_share_what_an_engine_computes_at_once() -> None:
    """The concurrency of config and engine are shared alike, rounded up; one process alone has all of it."""
    limited = SevenSlotsConfig(name="limited", limits=LimitsConfig(concurrent=5))
    concurrent = []
    for front_end in (SINGLE_FRONT_END, FrontEnd(1, 2)):
        manager = ModelManager(config(SevenSlotsConfig(name="unlimited"), limited), front_end, factory=DoubleFactory())
        manager.start()
        async with asyncio.timeout(10):
            while not manager.is_ready:
                await asyncio.sleep(0.01)
        concurrent += [status.queue.concurrent for status in manager.statuses]
        await manager.stop()

    assert concurrent == [7, 5, 4, 3]
