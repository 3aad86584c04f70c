"""Work off the event loop, and several tasks at once with a limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Item = TypeVar("Item")

# Starting a thread costs about as much as parsing this many bytes.
_INLINE_BYTES = 64 * 1024

# Requests to a target at once on behalf of one client's request; the others wait.
_MAX_CONCURRENT = 16


async def off_loop(
    size: int, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Return the result of work whose time grows with `size` in bytes; large work is done in a thread."""
    if size <= _INLINE_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


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
