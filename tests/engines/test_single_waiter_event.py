"""What the reader of an answer waits for."""

from __future__ import annotations

import asyncio

import pytest

from appliance.engines.vllm.patches import SingleWaiterEvent


async def test_a_reader_that_waits_goes_on_when_it_is_set() -> None:
    """It waits until then, and again once it is cleared."""
    ready = SingleWaiterEvent(asyncio.get_running_loop())
    waiting = ready.wait()

    assert not waiting.done()
    ready.set()
    await asyncio.wait_for(waiting, 10)
    ready.clear()
    assert not ready.wait().done()


async def test_a_reader_that_comes_late_does_not_wait() -> None:
    """What is set stays set until it is cleared."""
    ready = SingleWaiterEvent(asyncio.get_running_loop())
    ready.set()
    ready.set()

    assert ready.wait().done()


async def test_a_reader_that_left_is_in_nobodys_way() -> None:
    """A wait that was cancelled is not set, and the next one is."""
    ready = SingleWaiterEvent(asyncio.get_running_loop())
    left = asyncio.ensure_future(ready.wait())
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    ready.set()

    await asyncio.wait_for(ready.wait(), 10)
