"""Several requests to a target at once: their results in order, or their pieces as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

Item = TypeVar("Item")

# So many requests of one call go to the target at once; the others wait for them.
_MOST_AT_ONCE = 16


async def gathered(works: Sequence[Callable[[], Awaitable[Item]]]) -> list[Item]:
    """The result of each; the first error ends them all, and so does being cancelled."""
    gate = asyncio.Semaphore(_MOST_AT_ONCE)

    async def one(work: Callable[[], Awaitable[Item]]) -> Item:
        async with gate:
            return await work()

    tasks = [asyncio.create_task(one(work)) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


async def merged(streams: Sequence[AsyncGenerator[Item]]) -> AsyncGenerator[tuple[int, Item]]:
    """The pieces of all streams as they come, each with the number of its stream."""
    # One place, so that a slow reader slows the streams down.
    queue: asyncio.Queue[tuple[int, Item] | Exception | None] = asyncio.Queue(1)
    gate = asyncio.Semaphore(_MOST_AT_ONCE)

    async def pump(number: int, stream: AsyncGenerator[Item]) -> None:
        try:
            async with gate, aclosing(stream):
                async for piece in stream:
                    await queue.put((number, piece))
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    tasks = [asyncio.create_task(pump(number, stream)) for number, stream in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            piece = await queue.get()
            if isinstance(piece, Exception):
                raise piece
            if piece is None:
                left -= 1
            else:
                yield piece
    finally:
        await _end(tasks)


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
