"""Work in threads that nobody waits for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from appliance.core.concurrency import in_thread, opened_in_thread

LEFT_BEHIND = """
import asyncio, threading
from appliance.core.concurrency import in_thread

async def main():
    try:
        async with asyncio.timeout(0.1):
            await in_thread(threading.Event().wait)
    except TimeoutError:
        print("given up")

asyncio.run(main())
"""


class Door:
    """Something that opens when it is told to, and must be closed."""

    def __init__(self) -> None:
        self.may_open = threading.Event()
        self.is_closed = threading.Event()

    def open(self) -> Door:
        """Open, late."""
        self.may_open.wait()
        return self

    def close(self) -> None:
        """Close."""
        self.is_closed.set()


async def test_what_is_raised_in_a_thread_comes_out() -> None:
    """As if it had been raised here."""
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)


def test_work_that_never_ends_does_not_keep_the_process() -> None:
    """A server that does not answer cannot hold up whoever gave it up."""
    ended = subprocess.run([sys.executable, "-c", LEFT_BEHIND], capture_output=True, text=True, check=True, timeout=60)

    assert ended.stdout == "given up\n"


async def test_what_is_opened_is_closed() -> None:
    """At the end of the block."""
    door = Door()
    door.may_open.set()

    async with opened_in_thread(door.open) as opened:
        assert opened is door
        assert not door.is_closed.is_set()
    assert door.is_closed.is_set()


async def test_what_opens_too_late_is_closed_as_well() -> None:
    """Nobody else knows of it then."""
    door = Door()

    async def enter() -> None:
        async with opened_in_thread(door.open):
            pass

    entering = asyncio.create_task(enter())
    await asyncio.sleep(0.05)
    entering.cancel()
    with suppress(asyncio.CancelledError):
        await entering
    door.may_open.set()

    assert await asyncio.to_thread(door.is_closed.wait, 10)
