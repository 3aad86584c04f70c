"""Requests of many sequences beside others, with a clock that the test moves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from appliance.config.limits import LimitsConfig, SloConfig
from appliance.core.errors import RateLimitedError, RequestError
from appliance.core.request_context import use_context
from appliance.limits.queue import RequestQueue, SequenceSlots, require_size, run_sequence, use_slots
from appliance.limits.timeouts import Timeouts


async def settle() -> None:
    """Let every task go on until it waits for something."""
    for _ in range(10):
        await asyncio.sleep(0)


class Clock:
    """Seconds that pass when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Batch:
    """
    A request of so many sequences, each of which is computed until the test ends it; `size` 0 is one that only waits.
    """

    def __init__(self, harness: Harness, name: str, size: int) -> None:
        self.name = name
        self.running: list[asyncio.Future[None]] = []
        self.done = 0
        self._harness = harness
        self._size = size
        self.task = asyncio.create_task(self._answer())

    def end(self, count: int = 1) -> None:
        """So many of its sequences are computed."""
        for _ in range(count):
            self.running.pop(0).set_result(None)

    async def _answer(self) -> None:
        slots = await self._harness.queue.enter(400, Timeouts.of("m", self._harness.queue.limits))
        try:
            with use_slots(slots):
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._size):
                        group.create_task(self._compute())
        finally:
            slots.leave(None, is_success=self.done == self._size)

    async def _compute(self) -> None:
        async with run_sequence() as turn:
            assert turn is not None
            self._harness.order.append(self.name)
            computed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.running.append(computed)
            await computed
            turn.first_token()
            turn.end(is_success=True)
            self.done += 1


class Harness:
    """A queue with so much capacity, and requests that arrive at it."""

    def __init__(self, concurrent: int | None, ttft_seconds: float | None = None, **limits: Any) -> None:
        self.clock = Clock()
        slo = SloConfig(ttft_seconds=ttft_seconds)
        self.queue = RequestQueue(LimitsConfig(concurrent=concurrent, **limits), slo, self.clock)
        self.order: list[str] = []

    async def arrive(self, name: str, size: int = 1) -> Batch:
        """A request of so many sequences."""
        batch = Batch(self, name, size)
        await settle()
        return batch

    async def end(self, *batches: Batch) -> None:
        """Compute the oldest sequence of each of these, one after the other."""
        for batch in batches:
            batch.end()
            await settle()

    async def finish(self, *batches: Batch) -> None:
        """Compute all that is left of these."""
        while not all(batch.task.done() for batch in batches):
            for batch in batches:
                batch.end(len(batch.running))
            await settle()


async def test_a_large_request_leaves_half_of_the_places_to_others() -> None:
    """A single text among thousands begins at once."""
    harness = Harness(8)
    batch = await harness.arrive("batch", 5000)
    single = await harness.arrive("single")

    assert (len(batch.running), len(single.running), harness.queue.running) == (4, 1, 5)
    await harness.finish(single, batch)
    assert (batch.done, harness.queue.running, harness.queue.queued) == (5000, 0, 0)


async def test_a_single_text_overtakes_what_waits_of_large_requests() -> None:
    """Where large requests hold every place, the next one that gets free is for who has none."""
    harness = Harness(4)
    one, other = await harness.arrive("one", 100), await harness.arrive("other", 100)
    single = await harness.arrive("single")
    assert (harness.queue.running, harness.queue.queued, single.running) == (4, 1, [])

    await harness.end(one)

    assert len(single.running) == 1
    assert (len(one.running), len(other.running)) == (1, 2)
    await harness.finish(single, one, other)


async def test_large_requests_share_what_there_is() -> None:
    """Each free place goes to the request that has fewest, whoever came first and whatever is left of it."""
    harness = Harness(6)
    batches = [await harness.arrive(name, 300) for name in "abc"]

    for _ in range(20):
        await harness.end(*batches)

    assert [len(batch.running) for batch in batches] == [2, 2, 2]
    assert [batch.done for batch in batches] == [20, 20, 20]
    await harness.finish(*batches)


async def test_with_one_place_all_take_turns() -> None:
    """A request of many gives its only place up after each sequence, if somebody has waited for longer."""
    harness = Harness(1)
    batch = await harness.arrive("batch", 4)
    first, second = await harness.arrive("first"), await harness.arrive("second")

    for each in (batch, first, second, batch, batch, batch):
        await harness.end(each)

    assert harness.order == ["batch", "first", "second", "batch", "batch", "batch"]
    assert all(each.task.done() for each in (batch, first, second))
    assert harness.queue.running == 0


async def test_a_place_is_kept_between_the_sequences_of_a_request() -> None:
    """From its turn to its end a request is under way, even while nothing of it is computed."""
    harness = Harness(1)
    slots = await harness.queue.enter(400, Timeouts.of("m", harness.queue.limits))
    for _ in range(3):
        async with slots.sequence():
            assert harness.queue.running == 1

    assert harness.queue.running == 1
    slots.leave(None, is_success=True)
    assert harness.queue.running == 0


async def test_a_client_that_leaves_frees_all_places_of_its_request() -> None:
    """Those under way, and those that waited for their turn."""
    harness = Harness(4)
    gone, other = await harness.arrive("gone", 1000), await harness.arrive("other", 1000)
    gone.task.cancel()
    await settle()

    assert gone.task.cancelled()
    assert (len(other.running), harness.queue.running) == (2, 2)
    other.task.cancel()
    await settle()
    assert harness.queue.running == 0


async def test_a_turn_that_comes_as_its_client_leaves_is_passed_on() -> None:
    """In the same step of the loop a place gets free and who gets it goes."""
    harness = Harness(2)
    gone, other = await harness.arrive("gone", 2), await harness.arrive("other", 2)
    gone.end()
    gone.task.cancel()
    other.end()
    await settle()

    assert len(other.running) == 1
    await harness.finish(other)
    assert harness.queue.running == 0


async def test_a_sequence_that_begins_after_its_request_holds_nothing_for_long() -> None:
    """A generator that is closed late gives back what it took."""
    harness = Harness(2)
    slots = await harness.queue.enter(400, Timeouts.of("m", harness.queue.limits))
    async with slots.sequence():
        slots.leave(None, is_success=True)
        assert harness.queue.running == 0
        async with slots.sequence():
            assert harness.queue.running == 1

    assert harness.queue.running == 0


async def test_without_a_limit_nothing_waits() -> None:
    """Where nobody says how much is computed at once, all is begun."""
    harness = Harness(None)
    batch = await harness.arrive("batch", 500)

    assert len(batch.running) == 500
    await harness.finish(batch)


async def test_the_forecast_goes_by_sequences() -> None:
    """A thousand texts say how long one takes, not how long a thousand do."""
    harness = Harness(2, ttft_seconds=3)
    batch = await harness.arrive("batch", 100)
    for _ in range(100):
        harness.clock.now += 1
        await harness.end(batch)
    blocking = [await harness.arrive(name) for name in "ab"]
    waits = await harness.arrive("waits")
    harness.clock.now += 1
    await harness.end(*blocking, waits)

    assert batch.done == 100
    assert waits.task.done()
    assert harness.queue.refused == {}


async def test_places_of_one_request_fill_the_queue_for_others() -> None:
    """What is computed counts, not how many requests it is for."""
    harness = Harness(2, queued=0)
    batches = [await harness.arrive(name, 10) for name in "ab"]
    refused = await harness.arrive("refused")

    assert isinstance(refused.task.exception(), RateLimitedError)
    await harness.finish(*batches)


async def test_the_record_has_the_number_of_sequences() -> None:
    """One request may be much work."""
    with use_context("a") as record:
        harness = Harness(2)
        batch = await harness.arrive("batch", 7)
        await harness.finish(batch)

    assert record.sequences == 7


@pytest.mark.parametrize(
    ("inputs", "choices", "param"), [(4, 1, "input"), (3000, 1, "input"), (1, 3, "n"), (1, 16384, "n")]
)
async def test_a_request_that_is_too_large_is_refused(inputs: int, choices: int, param: str) -> None:
    """Before anything of it is computed, by the limits that hold now."""
    harness = Harness(4, inputs_per_request=3, choices_per_request=2)
    slots: SequenceSlots = await harness.queue.enter(400, Timeouts.of("m", harness.queue.limits))

    with use_slots(slots):
        require_size(3, 2, field="input")
        with pytest.raises(RequestError, match=rf"at most {2 if param == 'n' else 3} .*limits\.") as caught:
            require_size(inputs, choices, field="input")

    assert (caught.value.status, caught.value.param) == (400, param)
    slots.leave(None, is_success=False)


async def test_what_belongs_to_no_request_waits_for_nobody() -> None:
    """The first answer of a model that loads is one of those."""
    async with run_sequence() as turn:
        require_size(10**6, 10**6, field="input")
        assert turn is None
