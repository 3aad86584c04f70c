"""Blocking work in daemon threads, for which neither the process's end nor a cancelled caller waits."""

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
    """An object that must be closed."""

    def close(self) -> None: ...


C = TypeVar("C", bound=Closable)


def start(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Start `work` in a thread of its own.

    Not `asyncio.to_thread`: its threads are few, and the process does not end before the last of them returns, however
    long that one waits for a server.
    """
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()
    name = getattr(work, "__name__", None)
    Thread(target=_run, args=(outcome, partial(work, *args, **kwargs)), daemon=True, name=name).start()
    return outcome


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return the result of `work`, run in a thread of its own; cancelling this does not stop the thread."""
    return await asyncio.wrap_future(start(work, *args, **kwargs))


@asynccontextmanager
async def opened_in_thread(work: Callable[P, C], *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[C]:
    """Open with `work` in a thread, and close at the end; also what it opens after this was cancelled."""
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


def _run(outcome: Future[T], work: Callable[[], T]) -> None:
    try:
        result = work()
    except BaseException as error:
        outcome.set_exception(error)
    else:
        outcome.set_result(result)
