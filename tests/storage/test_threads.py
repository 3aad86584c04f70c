"""Work in threads that nobody waits for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from appliance.core.concurrency import in_thread

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


async def test_what_is_raised_in_a_thread_comes_out() -> None:
    """As if it had been raised here."""
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)


def test_work_that_never_ends_does_not_keep_the_process() -> None:
    """A server that does not answer cannot hold up whoever gave it up."""
    ended = subprocess.run([sys.executable, "-c", LEFT_BEHIND], capture_output=True, text=True, check=True, timeout=60)

    assert ended.stdout == "given up\n"
