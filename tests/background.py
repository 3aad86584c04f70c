"""An event loop in a thread of its own, for servers that a test talks to from outside."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

Result = TypeVar("Result")
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]

_PATIENCE_SECONDS = 10.0


class Background:
    """A server in a thread: a subclass says how it opens and closes.

    ``with`` it, or `start` and `stop` it.
    """

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    async def open(self) -> None:
        """Begin to listen."""
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of everything that `open` and its clients began."""
        raise NotImplementedError

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of a coroutine in the loop of the thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(_PATIENCE_SECONDS)

    def start(self) -> Self:
        """Listen when this returns."""
        self._thread.start()
        self.run(self.open())
        return self

    def stop(self) -> None:
        """Nothing is left of it when this returns."""
        self.run(self.close())
        self.run(_settle())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_PATIENCE_SECONDS)
        self.loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


async def listen(
    serve: Serve, sock: socket.socket | None = None, context: ssl.SSLContext | None = None
) -> asyncio.Server:
    """
    A server on a socket, by default a free port of the loopback, that holds its tasks.

    asyncio drops the task of a connection whose client sends no more, while the task waits for another socket.
    """
    tasks: set[asyncio.Task[None] | None] = set()

    async def serve_held(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        tasks.add(task)
        try:
            await serve(reader, writer)
        finally:
            tasks.discard(task)

    if sock is not None:
        return await asyncio.start_server(serve_held, sock=sock, ssl=context)
    return await asyncio.start_server(serve_held, "127.0.0.1", 0, ssl=context)


async def stop_listening(server: asyncio.Server) -> None:
    """Close a server; asyncio loses a connection that is accepted but not attached to its server when that closes."""
    for listener in server.sockets:
        asyncio.get_running_loop().remove_reader(listener.fileno())
    await _take_turns()
    server.close()


async def _settle() -> None:
    """Cancel what still runs, and let transports close."""
    loop = asyncio.get_running_loop()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    # A connection that came while the listener closed belongs to no server; asyncio knows it all the same.
    for transport in list(loop._transports.values()):  # type: ignore[attr-defined]
        transport.abort()
    await _take_turns()
    await loop.shutdown_asyncgens()


async def _take_turns() -> None:
    """Asyncio needs three turns of its loop from an accepted socket to the task that serves it."""
    for _ in range(4):
        await asyncio.sleep(0)
