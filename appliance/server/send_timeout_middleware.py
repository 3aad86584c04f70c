"""Clients that ask and do not read the answer: they would hold their place in a model for ever."""

from __future__ import annotations

import asyncio

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# Granian takes messages to a client that has left, and those to a fast one, without suspending the sender. A stream
# whose source is always ready would then keep the event loop to itself, which never hears that the client left.
_MESSAGES_PER_TURN = 32


class SendTimeoutMiddleware:
    """An ASGI application that ends a request whose client takes nothing for so many seconds."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        watch = _Watch(send, self._seconds)
        try:
            await self._app(scope, receive, watch.send)
        except asyncio.CancelledError:
            if not watch.has_ended_it:
                raise
            log.warning("client.stalled", seconds=self._seconds)
        finally:
            watch.close()


class _Watch:
    """One timer for all of a request's messages: one for each would cost more than to write it."""

    def __init__(self, send: Send, seconds: float) -> None:
        self.has_ended_it = False
        self._send = send
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._since: float | None = None
        self._sent = 0
        self._timer = self._loop.call_later(seconds, self._look)

    async def send(self, message: Message) -> None:
        """Send a message; other tasks run after each few, the one that hears of a client's leaving among them."""
        self._since = self._loop.time()
        await self._send(message)
        self._since = None
        self._sent += 1
        if self._sent % _MESSAGES_PER_TURN == 0:
            await asyncio.sleep(0)

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        left = self._seconds if self._since is None else self._since + self._seconds - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        elif self._task is not None:
            self.has_ended_it = True
            self._task.cancel()
