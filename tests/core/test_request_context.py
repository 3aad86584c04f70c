"""The record of a request: begun, found by whoever works for it, ended."""

from __future__ import annotations

import asyncio

from appliance.core.request_context import RequestContext, current_context, use_context


def test_there_is_no_record_outside_of_a_request() -> None:
    """Whoever works for no request finds none, before one and after it."""
    with use_context("a") as record:
        assert current_context() is record

    assert current_context() is None
    assert record.ended is not None
    assert record.ended >= record.began


def test_tokens_of_a_request_are_settled_once() -> None:
    """Each of its calls settles what was counted since the one before; nothing where nobody counts."""
    record = RequestContext("a")
    nobody = record.settle()
    record.prompt_tokens = 10
    first = record.settle()
    record.prompt_tokens, record.output_tokens = 15, 7

    assert (nobody, first, record.settle(), record.settle()) == ((None, 0), (10, 0), (5, 7), (0, 0))


async def test_a_task_begun_for_a_request_writes_into_its_record() -> None:
    """Two requests at once do not mix, and what a task of theirs learns is seen by the one who began it."""

    async def work(name: str) -> RequestContext:
        with use_context(name) as record:
            await asyncio.create_task(learn(name))
            return record

    async def learn(name: str) -> None:
        await asyncio.sleep(0)
        record = current_context()
        assert record is not None
        record.model = name

    one, two = await asyncio.gather(work("one"), work("two"))

    assert (one.model, two.model) == ("one", "two")
