"""
A proxy on the loopback that does to TCP connections what bad networks do.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

Kind = Literal["pass", "reset", "end", "stall", "flip", "refuse", "whole", "slow", "latency"]

ALWAYS = 1 << 30
_BLOCK = 1 << 16

# What a client asks for once it is past its listing: not the one byte that tells the size.
_RANGE = re.compile(rb"(\r\n)Range:(?! bytes=0-0\r)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Fault:
    """
    What happens to connections.

    `reset` breaks one with RST once `after` bytes went to the client, `end` closes it in order, `stall` lets nothing
    more through, `flip` turns the bits of one byte, `refuse` breaks it before anything is read,
    and `whole` takes the Range header out of a request. `slow` lets `bytes_per_second` through, and `latency` holds
    each request back for `seconds`. All but the last two happen `times` times.
    """

    kind: Kind = "pass"
    after: int = 0
    times: int = ALWAYS
    bytes_per_second: int = 1 << 20
    seconds: float = 0


class FaultProxy:
    """
    Forwards `port` to another port; change `fault` at any time.
    """

    def __init__(self, upstream_port: int, loop: asyncio.AbstractEventLoop) -> None:
        self.port = 0
        self.connections = 0
        """How many connections came since the fault was set."""
        self.sent = 0
        """How many bytes went to clients since the fault was set."""
        self.hits = 0
        """How often the fault happened."""
        self._upstream_port = upstream_port
        self._loop = loop
        self._fault = Fault()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """
        Where clients come to.
        """
        return f"http://127.0.0.1:{self.port}"

    def set(self, fault: Fault) -> None:
        """
        Do this from now on, and count from zero.
        """
        self._fault = fault
        self.connections = self.sent = self.hits = 0

    async def open(self) -> None:
        """
        Listen.
        """
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=_BLOCK)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """
        Break every connection, and listen no more.
        """
        if self._server:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._forward(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._happens("refuse", 0):
            _reset(writer)
            return
        above, below = await asyncio.open_connection("127.0.0.1", self._upstream_port, limit=_BLOCK)
        upwards = asyncio.create_task(self._upwards(reader, below))
        try:
            await self._downwards(above, writer)
        finally:
            upwards.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await upwards
            below.close()

    async def _upwards(self, reader: asyncio.StreamReader, below: asyncio.StreamWriter) -> None:
        while block := await reader.read(_BLOCK):
            if self._fault.kind == "latency":
                await asyncio.sleep(self._fault.seconds)
            if self._fault.kind == "whole" and _RANGE.search(block) and self._happens("whole", 0):
                block = _RANGE.sub(rb"\1X-Omitted:", block)
            below.write(block)
            await below.drain()
        below.write_eof()

    async def _downwards(self, above: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = 0
        while block := await above.read(_BLOCK):
            place = max(0, self._fault.after - passed)
            if self._fault.kind in ("reset", "end", "stall", "flip") and self._happens(self._fault.kind, passed, block):
                if self._fault.kind != "flip":
                    await self._send(writer, block[:place])
                    await self._break(writer)
                    return
                block = block[:place] + bytes([block[place] ^ 0xFF]) + block[place + 1 :]
            await self._send(writer, block)
            passed += len(block)
            if self._fault.kind == "slow":
                await asyncio.sleep(len(block) / self._fault.bytes_per_second)
        writer.write_eof()

    async def _send(self, writer: asyncio.StreamWriter, block: bytes) -> None:
        writer.write(block)
        await writer.drain()
        self.sent += len(block)

    async def _break(self, writer: asyncio.StreamWriter) -> None:
        if self._fault.kind == "stall":
            await asyncio.Event().wait()
        elif self._fault.kind == "reset":
            # The client gets what was sent before; a reset would overtake it.
            await asyncio.sleep(0.02)
            _reset(writer)
        else:
            writer.close()

    def _happens(self, kind: Kind, passed: int, block: bytes = b"") -> bool:
        fault = self._fault
        is_reached = not block or passed <= fault.after < passed + len(block)
        due = fault.kind == kind and self.hits < fault.times and is_reached
        self.hits += due
        return due


def _reset(writer: asyncio.StreamWriter) -> None:
    # Without lingering, the kernel sends RST.
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextmanager
def proxying(upstream_port: int) -> Iterator[FaultProxy]:
    """
    A proxy before a port of the loopback, in a thread, until the end of the block.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True, name="fault proxy")
    thread.start()
    proxy = FaultProxy(upstream_port, loop)
    asyncio.run_coroutine_threadsafe(proxy.open(), loop).result()
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(proxy.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
