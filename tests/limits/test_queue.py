"""The queue of one model, with a clock that the test moves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from appliance.config.limits import LimitsConfig, SloConfig
from appliance.core.errors import RateLimitedError, RequestTimeoutError
from appliance.core.request_context import use_context
from appliance.core.shared_traffic import ModelTraffic
from appliance.limits.queue import RequestQueue, SequenceSlots
from appliance.limits.timeouts import Timeouts


class Clock:
    """Seconds that pass when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Harness:
    """A queue, and requests that arrive at it."""

    def __init__(self, ttft_seconds: float | None = None, traffic: ModelTraffic | None = None, **limits: Any) -> None:
        self.clock = Clock()
        slo = SloConfig(ttft_seconds=ttft_seconds)
        self.queue = RequestQueue(LimitsConfig(**limits), slo, self.clock, shared_traffic=traffic)
        self.order: list[str] = []

    def arrive(self, name: str = "", size: int = 400) -> asyncio.Task[SequenceSlots]:
        """A request with a body of so many bytes."""
        timeouts = Timeouts.of("m", self.queue.limits)

        async def enter() -> SequenceSlots:
            slots = await self.queue.enter(size, timeouts)
            self.order.append(name)
            return slots

        return asyncio.create_task(enter())

    def arrive_in_background(self, name: str = "background") -> asyncio.Task[SequenceSlots]:
        """A background request."""

        async def enter() -> SequenceSlots:
            slots = await self.queue.enter_background(400)
            self.order.append(name)
            return slots

        return asyncio.create_task(enter())

    def answer(self, task: asyncio.Task[SequenceSlots], seconds: float = 0.0) -> None:
        """A request that came is answered, and leaves."""
        self.clock.now += seconds
        task.result().leave(None, is_success=True)

    async def full(self, count: int) -> list[asyncio.Task[SequenceSlots]]:
        """So many requests, all of them under harness."""
        tasks = [self.arrive() for _ in range(count)]
        await settle()
        assert self.queue.running == count
        return tasks


async def settle() -> None:
    """Let every task go on until it waits for something."""
    for _ in range(10):
        await asyncio.sleep(0)


async def refused(harness: Harness, size: int = 400) -> RateLimitedError:
    """The error of a request that is not let in."""
    task = harness.arrive(size=size)
    await settle()
    error = task.exception()
    assert isinstance(error, RateLimitedError)
    return error


async def test_who_comes_first_is_first_served() -> None:
    """The queue has an order, and a place that gets free goes to its head."""
    harness = Harness(concurrent=1)
    (first,) = await harness.full(1)
    waiting = [harness.arrive(name) for name in "abc"]
    await settle()
    assert (harness.queue.running, harness.queue.queued) == (1, 3)

    for task in (first, *waiting):
        harness.answer(task)
        await settle()

    assert harness.order == ["", "a", "b", "c"]
    assert (harness.queue.running, harness.queue.queued) == (0, 0)


async def test_who_comes_late_does_not_overtake() -> None:
    """A place that is free for a moment belongs to whoever waits for it."""
    harness = Harness(concurrent=1)
    (first,) = await harness.full(1)
    waiting = harness.arrive("waits")
    await settle()
    harness.answer(first)
    late = harness.arrive("late")
    await settle()

    assert waiting.done()
    assert not late.done()
    late.cancel()


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"concurrent": 1, "queued": 0}, "concurrent"),
        ({"concurrent": 1, "queued": 2}, "queue"),
        ({"concurrent": 1, "queued_tokens": 250}, "tokens"),
    ],
)
async def test_one_too_many_is_refused_at_once(limits: dict[str, Any], reason: str) -> None:
    """Each limit has a word, which is counted and noted in the record of the request."""
    harness = Harness(**limits)
    await harness.full(1)
    waiting = [harness.arrive() for _ in range(limits.get("queued", 2))]
    await settle()
    with use_context("a") as record:
        error = await refused(harness)

    assert (error.status, error.code, record.refused) == (429, "overloaded", reason)
    assert harness.queue.refused == {reason: 1}
    for task in waiting:
        task.cancel()


async def test_retry_after_is_how_long_the_queue_takes_to_drain() -> None:
    """In whole seconds, by the rate that was measured; one where nothing was."""
    harness = Harness(concurrent=2, queued=3)
    cold = await harness.full(2)
    queue = [harness.arrive() for _ in range(3)]
    await settle()
    before = await refused(harness)
    harness.answer(cold[0], 8)
    await settle()
    queue.append(harness.arrive())
    await settle()
    after = await refused(harness)

    assert before.retry_after == 1
    # Two places that are held for eight seconds each: a place in four, and the queue of three and this one in sixteen.
    assert after.retry_after == 16
    for task in queue[1:]:
        task.cancel()


async def test_who_leaves_the_queue_leaves_no_trace() -> None:
    """A client that goes away while it waits gives up its turn, even in the moment that it comes."""
    harness = Harness(concurrent=1)
    (first,) = await harness.full(1)
    gone, next_ = harness.arrive("gone"), harness.arrive("next")
    await settle()
    # Its turn comes, and it is told to end before it hears of it.
    harness.answer(first)
    gone.cancel()
    await settle()

    assert gone.cancelled()
    assert harness.order == ["", "next"]
    assert (harness.queue.running, harness.queue.queued) == (1, 0)
    assert next_.done()


async def test_the_engine_bounds_what_the_config_does_not() -> None:
    """Unset is what the engine says, which is known once it is there."""
    harness = Harness()
    await harness.full(5)
    harness.queue.engine_concurrent = 6
    tasks = [harness.arrive(), harness.arrive()]
    await settle()

    assert [task.done() for task in tasks] == [True, False]
    tasks[1].cancel()


async def test_new_settings_hold_from_now_on() -> None:
    """Who waits is let in by a limit that was raised."""
    harness = Harness(concurrent=1, queued=2)
    await harness.full(1)
    waiting = [harness.arrive(), harness.arrive()]
    await settle()
    harness.queue.apply(LimitsConfig(concurrent=2, queued=0), SloConfig())
    await settle()

    assert [task.done() for task in waiting] == [True, False]
    assert (await refused(harness)).code == "overloaded"
    waiting[1].cancel()


async def test_a_wait_that_would_break_the_promise_is_refused_at_once() -> None:
    """The forecast decides: one place, use_slots for a second each time, and two seconds are promised."""
    harness = Harness(ttft_seconds=2, concurrent=1)
    (task,) = await harness.full(1)
    harness.answer(task, 1)
    await harness.full(1)
    soon = harness.arrive()
    await settle()
    error = await refused(harness)

    assert not soon.done()
    assert error.retry_after == 2
    assert harness.queue.refused == {"slo": 1}
    soon.cancel()


async def test_nobody_is_promised_what_is_not_known() -> None:
    """A cold model computes what it has places for, and lets nobody wait until one of them has ended."""
    harness = Harness(ttft_seconds=2, concurrent=2)
    tasks = await harness.full(2)
    cold = await refused(harness)
    harness.answer(tasks[0], 0.5)
    third = harness.arrive()
    warm = harness.arrive()
    await settle()

    assert cold.retry_after == 1
    assert third.done()
    assert not warm.done()
    warm.cancel()


async def test_a_slow_first_token_holds_back_the_next_request() -> None:
    """Among two under way it took all that is promised, so a third is refused; an idle model refuses nobody."""
    harness = Harness(ttft_seconds=2)
    tasks = await harness.full(2)
    harness.clock.now += 2
    tasks[0].result().first_token()
    error = await refused(harness)
    for task in tasks:
        harness.answer(task)

    assert error.code == "overloaded"
    assert (await harness.full(1))[0].done()


async def test_a_forecast_that_was_wrong_does_not_break_the_promise() -> None:
    """Whose turn has not come in time is refused then: it would take the turn of one whose promise can be kept."""
    harness = Harness(ttft_seconds=0.2, concurrent=1)
    (task,) = await harness.full(1)
    harness.answer(task, 0.1)
    await harness.full(1)
    late = harness.arrive()

    with pytest.raises(RateLimitedError, match="did not get to it in time"):
        await asyncio.wait_for(late, 60)
    assert harness.queue.refused == {"late": 1}
    assert harness.queue.queued == 0


async def test_a_deadline_ends_the_wait() -> None:
    """The first token cannot come in time where the turn does not."""
    harness = Harness(concurrent=1, first_token_seconds=0.05)
    await harness.full(1)
    with use_context("a") as record:
        waiting = harness.arrive()
        with pytest.raises(RequestTimeoutError, match=r"limits\.first_token_seconds of 0\.05") as caught:
            await asyncio.wait_for(waiting, 60)

    assert caught.value.status == 504
    assert (record.refused, harness.queue.queued) == ("deadline", 0)


async def test_tokens_of_the_queue_are_estimated_as_requests_had_them() -> None:
    """What was counted in earlier prompts decides how many bytes may wait."""
    harness = Harness(concurrent=1, queued_tokens=100)
    before = harness.queue.tokens(800)
    for _ in range(50):
        (task,) = await harness.full(1)
        task.result().leave(40, is_success=True)
    await harness.full(1)
    waiting = harness.arrive(size=800)
    await settle()

    assert before == 200
    assert 80 <= harness.queue.queued_tokens <= 100
    assert not waiting.done()
    waiting.cancel()


async def test_background_requests_take_what_interactive_ones_leave() -> None:
    """All of them together have at most half of the units, and only while no interactive request waits."""
    harness = Harness(concurrent=4)
    background = [harness.arrive_in_background() for _ in range(3)]
    await settle()
    assert [task.done() for task in background] == [True, True, False]
    interactive = [harness.arrive(name) for name in "abc"]
    await settle()
    assert (harness.queue.running, harness.queue.queued) == (4, 1)

    harness.answer(background[0])
    await settle()
    assert harness.order[-1] == "c"
    assert not background[2].done()

    harness.answer(interactive[0])
    await settle()
    assert background[2].done()


async def test_background_requests_do_not_fill_the_queue() -> None:
    """They neither count as waiting, nor are refused, nor time out while they wait."""
    harness = Harness(concurrent=1, queued=1, first_token_seconds=0.01)
    (first,) = await harness.full(1)
    background = [harness.arrive_in_background() for _ in range(5)]
    await settle()
    waiting = harness.arrive("interactive")
    await settle()
    assert harness.queue.queued == 1

    for task in (first, waiting, *background):
        harness.answer(task)
        await settle()

    assert harness.order == ["", "interactive", *["background"] * 5]
    assert harness.queue.running == 0


async def test_background_requests_of_a_model_without_a_limit_are_few() -> None:
    """Interactive requests are not limited by them."""
    harness = Harness()
    background = [harness.arrive_in_background() for _ in range(20)]
    await settle()
    interactive = [harness.arrive() for _ in range(20)]
    await settle()

    assert all(task.done() for task in interactive)
    assert sum(task.done() for task in background) == 8
    for task in background:
        task.cancel()


async def test_a_background_request_that_is_cancelled_leaves_nothing() -> None:
    """Neither while it waits, nor in the moment of its turn."""
    harness = Harness(concurrent=1)
    (first,) = await harness.full(1)
    waiting = [harness.arrive_in_background() for _ in range(2)]
    await settle()
    waiting[0].cancel()
    harness.answer(first)
    waiting[1].cancel()
    await settle()

    assert harness.queue.running == 0
    assert (await harness.arrive()).queue is harness.queue
