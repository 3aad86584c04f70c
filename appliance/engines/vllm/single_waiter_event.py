"""What the reader of one answer waits for: that the engine has put something there."""

from __future__ import annotations

import asyncio


class SingleWaiterEvent:
    """
    asyncio's event for a single reader: each token is waited for, and the queue of waiters costs as much as the rest.
    """

    __slots__ = ("_is_set", "_loop", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Have the reader go on."""
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def clear(self) -> None:
        """Have the reader wait from now on."""
        self._is_set = False

    def wait(self) -> asyncio.Future[None]:
        """Done once it is set."""
        self._waiter = self._loop.create_future()
        if self._is_set:
            self._waiter.set_result(None)
        return self._waiter
