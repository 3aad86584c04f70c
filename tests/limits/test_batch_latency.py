"""Interactive latency beside a batch, in simulated time: an engine with steps, and requests at random moments."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from bench.step_engine import Steps

from appliance.config.batches import BatchStart
from appliance.config.limits import LimitsConfig, SloConfig
from appliance.limits.queue import RequestQueue
from appliance.limits.timeouts import Timeouts

WORDS, TOKENS, LINES_AT_ONCE, REQUESTS = 60, 16, 8, 2000


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer."""

    def __init__(self) -> None:
        self.now = 0.0
        loop = self

        class Selector(selectors.SelectSelector):
            def select(self, timeout: float | None = None) -> list[Any]:  # Any: as in the base class
                loop.now += timeout or 0
                return super().select(0)

        super().__init__(Selector())

    def time(self) -> float:
        return self.now


def run(work: Coroutine[Any, Any, tuple[list[float], int]]) -> tuple[list[float], int]:
    """The result of the work, in simulated time."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(work)


async def simulate(rate: float, start: BatchStart | None) -> tuple[list[float], int]:
    """The times to first token of requests at a rate, and how many lines of a batch were answered meanwhile."""
    loop = asyncio.get_running_loop()
    queue, steps = RequestQueue(LimitsConfig(), SloConfig(), loop.time), Steps()
    firsts: list[float] = []
    lines = 0

    async def request() -> None:
        arrived = loop.time()
        slots = await queue.enter(1, Timeouts.of("m", queue.limits))
        async with aclosing(steps.tokens(WORDS, TOKENS)) as tokens:
            await anext(tokens)
            firsts.append(loop.time() - arrived)
            async for _ in tokens:
                pass
        slots.leave(None, is_success=True)

    async def line() -> None:
        slots = await queue.enter_background(1)
        try:
            async with aclosing(steps.tokens(WORDS, TOKENS)) as tokens:
                async for _ in tokens:
                    slots.first_token()
        finally:
            slots.leave(None, is_success=False)

    async def batch() -> None:
        nonlocal lines
        while True:
            await (line() if start == "always" else queue.batch_lines.run(line, is_idle_enough=start == "idle"))
            lines += 1

    batches = [asyncio.create_task(batch()) for _ in range(LINES_AT_ONCE if start is not None else 0)]
    arrivals = random.Random(1)
    async with asyncio.TaskGroup() as group:
        for _ in range(REQUESTS):
            await asyncio.sleep(arrivals.expovariate(rate))
            group.create_task(request())
    for each in batches:
        each.cancel()
    await asyncio.gather(*batches, return_exceptions=True)
    return firsts, lines


def p95(values: Sequence[float]) -> float:
    """The 95th percentile."""
    return sorted(values)[int(len(values) * 0.95)]


@pytest.mark.parametrize("rate", [2.0, 6.0, 12.0])
def test_the_95th_percentile_is_kept_beside_a_batch(rate: float) -> None:
    """At most 5 % worse at a tenth, a third and two thirds of the capacity; the batch gets something meanwhile."""
    alone, _ = run(simulate(rate, None))
    beside, lines = run(simulate(rate, "pause"))

    assert p95(beside) <= 1.05 * p95(alone)
    assert lines > 0


@pytest.mark.long
def test_a_batch_may_have_more_for_a_price() -> None:
    """With `idle`, most of what it gets with `always`, for less than half of the price."""
    results = {start: run(simulate(2.0, start)) for start in (None, "pause", "idle", "always")}
    latency = {start: p95(firsts) for start, (firsts, _) in results.items()}
    lines = {start: count for start, (_, count) in results.items()}

    assert latency[None] < latency["idle"] < latency["always"] / 2
    assert lines["pause"] < lines["idle"] < lines["always"]
