"""Work that waits for others, in threads that nobody has to wait for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from threading import Thread
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Closable(Protocol):
    """What must be closed."""

    def close(self) -> None:
        """Let go of everything."""
        ...


C = TypeVar("C", bound=Closable)


def start(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Begin `work` in a thread of its own.

    Not `asyncio.to_thread`: its threads are few, and the process does not end before the last of them is done, however
    long that waits for a server.
    """
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()
    Thread(target=_do, args=(outcome, partial(work, *args, **kwargs)), daemon=True, name="storage").start()
    return outcome


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns, done in a thread of its own; a cancelled caller leaves it to itself."""
    return await asyncio.wrap_future(start(work, *args, **kwargs))


@asynccontextmanager
async def opened_in_thread(work: Callable[P, C], *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[C]:
    """What `work` opens in a thread, closed at the end, and also when it opens after nobody wants it any more."""
    opening = start(work, *args, **kwargs)
    try:
        opened = await asyncio.wrap_future(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close)
        raise
    try:
        yield opened
    finally:
        opened.close()


def _close(opening: Future[C]) -> None:
    if not opening.exception():
        opening.result().close()


def _do(outcome: Future[T], work: Callable[[], T]) -> None:
    try:
        result = work()
    except BaseException as error:
        outcome.set_exception(error)
    else:
        outcome.set_result(result)
