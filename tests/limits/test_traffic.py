"""Pauses in which batches run, over simulated traffic."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from limits.test_queue import Harness, settle

from appliance.core.shared_traffic import SharedTraffic
from appliance.limits.queue import SequenceSlots
from appliance.limits.traffic import InteractiveTraffic


class Line:
    """A line of a batch, which runs until `may_end`; `starts` counts how often it began."""

    def __init__(self, harness: Harness) -> None:
        self.starts = 0
        self.may_end = asyncio.Event()
        self._queue = harness.queue

    async def run(self) -> int:
        """Hold a unit."""
        slots = await self._queue.enter_background(1)
        self.starts += 1
        slots.first_token()
        try:
            await self.may_end.wait()
        finally:
            slots.leave(None, is_success=False)
        return self.starts


@pytest.mark.parametrize("is_regular", [False, True], ids=["random", "regular"])
@pytest.mark.parametrize("interval", [0.02, 1.0, 10.0])
def test_hardly_any_request_finds_a_batch_running(interval: float, is_regular: bool) -> None:
    """Of requests that come at random or at even intervals, fewer than 2 % do, and the batch still gets some time."""
    traffic, arrivals, now = InteractiveTraffic(), random.Random(1), 0.0
    disturbed, batch_seconds = 0, 0.0
    for number in range(5000):
        wait = traffic.pause_seconds(now)
        gap = interval if is_regular else arrivals.expovariate(1 / interval)
        now += gap
        disturbed += gap > wait
        # Before the first request there is nothing to pause for.
        batch_seconds += max(0.0, gap - wait) if number else 0.0
        traffic.arrive(now, is_disturbed=gap > wait)

    assert disturbed < 0.02 * 5000
    # Before regular requests, a pause ends shortly before the next one; a line that was interrupted often goes on then.
    assert batch_seconds > (0.00001 if is_regular else 0.001) * now


def test_requests_in_bursts_are_learned() -> None:
    """Where the intervals are no guide, the requests that were disturbed are."""
    traffic, arrivals, now = InteractiveTraffic(), random.Random(1), 0.0
    disturbed = []
    for number in range(4000):
        wait = traffic.pause_seconds(now)
        # Four at once, then a pause.
        gap = arrivals.expovariate(2) if number % 4 == 0 else 0.01
        now += gap
        disturbed.append(gap > wait)
        traffic.arrive(now, is_disturbed=gap > wait)

    assert sum(disturbed[1000:]) < 0.03 * 3000


def test_a_batch_starts_at_once_where_nobody_asks() -> None:
    """Without interactive requests there is nothing to wait for; after a long silence neither."""
    traffic = InteractiveTraffic()
    assert traffic.pause_seconds(100.0) == 0

    for moment in (100.0, 200.0, 300.0):
        traffic.arrive(moment, is_disturbed=True)
    assert traffic.pause_seconds(300.0) == 60
    assert traffic.pause_seconds(361.0) == 0


async def test_some_lines_run_beside_many_requests() -> None:
    """Where requests never pause, batches get one unit for every 20 that they have."""
    harness = Harness()
    tasks = [harness.arrive() for _ in range(40)]
    await settle()
    line = Line(harness)
    runs = [asyncio.create_task(harness.queue.batch_lines.run(line.run)) for _ in range(4)]
    await settle()

    assert all(task.done() for task in tasks)
    assert line.starts == 2
    for run in runs:
        run.cancel()


async def test_a_line_is_interrupted_for_a_request() -> None:
    """It begins again in the next pause; after three times it goes on, so that long lines end too."""
    harness = Harness()
    line = Line(harness)
    run = asyncio.create_task(harness.queue.batch_lines.run(line.run))
    for number in range(6):
        await settle()
        assert line.starts == min(number, 3) + 1
        interactive = harness.arrive()
        await interactive
        harness.answer(interactive)
        harness.clock.now += 61
        async with asyncio.timeout(5):
            while line.starts < min(number + 1, 3) + 1:
                await asyncio.sleep(0.01)
    line.may_end.set()

    assert await run == 4


async def test_a_line_whose_batch_stops_is_not_run_again() -> None:
    """A cancellation from outside ends it."""
    harness = Harness()
    line = Line(harness)
    run = asyncio.create_task(harness.queue.batch_lines.run(line.run))
    await settle()
    run.cancel()

    with pytest.raises(asyncio.CancelledError):
        await run
    assert (line.starts, harness.queue.running) == (1, 0)


async def test_a_line_pauses_for_requests_of_other_workers() -> None:
    """One is interrupted when they come, and begins when they have ended and have paused; a dead worker has none."""
    shared = SharedTraffic(2)
    harness, other = (Harness(traffic=shared.of_model("m", worker)) for worker in (0, 1))
    line = Line(harness)
    run = asyncio.create_task(harness.queue.batch_lines.run(line.run))
    await settle()
    assert line.starts == 1
    first = other.arrive()
    await _until(lambda: harness.queue.running == 0)
    harness.clock.now += 61
    await asyncio.sleep(0.25)
    assert line.starts == 1
    other.answer(first)
    await _until(lambda: line.starts == 2)
    other.clock.now = harness.clock.now
    await other.arrive()
    await _until(lambda: harness.queue.running == 0)
    harness.clock.now += 61
    shared.clear(1)
    await _until(lambda: line.starts == 3)
    line.may_end.set()

    assert await run == 3


async def test_requests_before_and_beside_a_batch_have_one_pause() -> None:
    """Their intervals are learned as if all had come to the worker of the batch."""
    shared = SharedTraffic(2)
    harness, other, single = (
        Harness(traffic=shared.of_model("m", 0)),
        Harness(traffic=shared.of_model("m", 1)),
        Harness(),
    )
    for number in range(40):
        for each in (harness if number % 8 == 0 else other, single):
            each.answer(await _entered(each))
        for each in (harness, other, single):
            each.clock.now += 0.5
    pause, expected = (each.queue.batch_lines.wait_seconds() for each in (harness, single))

    assert pause == pytest.approx(expected)
    assert expected > 1


async def _entered(harness: Harness) -> asyncio.Task[SequenceSlots]:
    task = harness.arrive()
    await task
    return task


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.01)
