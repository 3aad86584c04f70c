"""Work off the event loop, several tasks at once with a limit, and delays between attempts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from threading import Thread
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Item = TypeVar("Item")

# Starting a thread costs about as much as parsing this many bytes.
_INLINE_BYTES = 64 * 1024

# Requests to a target at once on behalf of one client's request; the others wait.
_MAX_CONCURRENT = 16

# 2**30 times any first delay is longer than any limit; it keeps the power from overflowing.
_MAX_EXPONENT = 30


async def off_loop(
    size: int, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Return the result of work whose time grows with `size` in bytes; large work is done in a thread."""
    if size <= _INLINE_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


def start(work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Future[Result]:
    """Start `work` in a daemon thread of its own, for which neither the process's end nor a cancelled caller waits.

    The threads of `asyncio.to_thread` are few, and the process does not end before the last of them returns, however
    long that one waits for a server.
    """
    outcome: Future[Result] = Future()
    outcome.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = work(*args, **kwargs)
        except BaseException as error:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)

    Thread(target=run, daemon=True, name=getattr(work, "__name__", None)).start()
    return outcome


async def in_thread(work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """Return the result of `work`, run by `start`; cancelling this does not stop the thread."""
    return await asyncio.wrap_future(start(work, *args, **kwargs))


async def gather_limited(works: Sequence[Callable[[], Awaitable[Item]]]) -> list[Item]:
    """Return all results in order; the first error, or a cancellation, cancels the rest."""
    semaphore = asyncio.Semaphore(_MAX_CONCURRENT)

    async def run(work: Callable[[], Awaitable[Item]]) -> Item:
        async with semaphore:
            return await work()

    tasks = [asyncio.create_task(run(work)) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)


async def merge_streams(streams: Sequence[AsyncGenerator[Item]]) -> AsyncGenerator[tuple[int, Item]]:
    """Yield the items of all streams as they come, each with the index of its stream."""
    # A queue of one, so that a slow reader slows the streams down.
    queue: asyncio.Queue[tuple[int, Item] | Exception | None] = asyncio.Queue(1)
    semaphore = asyncio.Semaphore(_MAX_CONCURRENT)

    async def read(index: int, stream: AsyncGenerator[Item]) -> None:
        try:
            async with semaphore, aclosing(stream):
                async for item in stream:
                    await queue.put((index, item))
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    tasks = [asyncio.create_task(read(index, stream)) for index, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        await _cancel(tasks)


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def backoff_seconds(failures: int, *, first_seconds: float, max_seconds: float) -> float:
    """Return the delay before the next attempt after so many consecutive failures, at least one.

    It doubles with each failure up to `max_seconds`. Jitter of 50 to 100 % keeps parallel attempts from coinciding.
    """
    delay = min(first_seconds * 2 ** min(failures - 1, _MAX_EXPONENT), max_seconds)
    return random.uniform(delay / 2, delay)  # noqa: S311 - not a secret
