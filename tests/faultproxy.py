"""A TCP proxy that breaks connections on demand; of what it carries it knows one header of HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from dataclasses import dataclass
from typing import Literal

from background import Background, listen, stop_listening

Kind = Literal["refuse", "hang_up", "reset", "fin", "stall", "corrupt", "whole", "slow", "latency"]

ALWAYS = 1_000_000

_PIECE = 65536

# A reset throws away what its receiver has not read yet; the bytes before it are meant to arrive.
_READ_SECONDS = 0.05

# What asks for a part of a file, and not for the one byte that tells its size.
_RANGE = re.compile(rb"(\r\n)Range:(?! bytes=0-0\r)", re.IGNORECASE)

# The end of a connection that lingers for no time is a reset.
_NO_LINGER = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to connections.

    - ``refuse``: nobody listens, and the connections there are are reset
    - ``hang_up``: each connection is reset as soon as it is accepted, and so are those there are
    - ``reset``, ``fin``, ``stall``, ``corrupt``: after `after` bytes to the client, counted for each connection since
      the fault was set, it is reset, ends early, carries nothing more, or has one byte flipped
    - ``whole``: the Range header is taken out of a request, so that the server sends all of a file
    - ``slow``: `rate` bytes a second to the client
    - ``latency``: each request waits `seconds`

    `times` is how often it happens; afterwards all is well. It does not bound ``refuse``, ``slow`` and ``latency``.
    """

    kind: Kind
    after: int = 0
    times: int = ALWAYS
    rate: int = 1024
    seconds: float = 0.0


class FaultProxy(Background):
    """Stands on a port of the loopback, or of another address of this machine, before a port of the loopback."""

    def __init__(self, target_port: int, host: str = "127.0.0.1") -> None:
        super().__init__()
        self._host = host
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._fault: Fault | None = None
        self._left = 0
        # Holds the port while nobody listens on it: a connection is then refused, and nobody else gets the port.
        self._holder = _socket(host, 0)
        self.port: int = self._holder.getsockname()[1]
        self.accepted = 0
        """Connections so far."""
        self.hits = 0
        """Faults since one was set, as far as they are counted."""
        self._sent = 0

    @property
    def url(self) -> str:
        """The address of an HTTP server behind it."""
        return f"http://{self._host}:{self.port}"

    @property
    def sent(self) -> int:
        """Bytes that went to clients since a fault was set."""
        return self._sent + sum(connection.passed for connection in list(self._connections))

    def set(self, fault: Fault | None) -> None:
        """Break connections so from now on; None leaves them whole."""
        self.run(self._set(fault))

    async def open(self) -> None:
        """Listen."""
        self._server = await listen(self._accept, sock=_socket(self._host, self.port))

    async def close(self) -> None:
        """Listen no more, and reset every connection."""
        await self._refuse()
        for connection in list(self._connections):
            connection.reset()
        self._holder.close()

    async def _set(self, fault: Fault | None) -> None:
        self._fault, self._left = fault, fault.times if fault else 0
        self.hits = self._sent = 0
        for connection in list(self._connections):
            connection.passed = 0
            if self._is("refuse", "hang_up"):
                connection.reset()
        if self._is("refuse"):
            await self._refuse()
        elif self._server is None:
            await self.open()

    async def _refuse(self) -> None:
        if self._server is not None:
            await stop_listening(self._server)
            self._server = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        connection = _Connection(writer)
        self._connections.add(connection)
        try:
            if self._take("hang_up"):
                connection.reset()
            else:
                await self._carry(connection, reader)
        except OSError:
            connection.reset()
        finally:
            self._connections.discard(connection)
            self._sent += connection.passed
            connection.close()

    async def _carry(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        answers, requests = await asyncio.open_connection("127.0.0.1", self._target_port)
        connection.writers.append(requests)
        upward = asyncio.create_task(self._upward(reader, requests, connection.left))
        try:
            while piece := await answers.read(_PIECE):
                if not await self._pass(connection, piece):
                    return
        finally:
            upward.cancel()
            await asyncio.gather(upward, return_exceptions=True)

    async def _upward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PIECE):
                if self._fault and self._fault.kind == "latency":
                    await asyncio.sleep(self._fault.seconds)
                if _RANGE.search(piece) and self._take("whole"):
                    piece = _RANGE.sub(rb"\1X-Omitted:", piece)
                writer.write(piece)
                await writer.drain()
        # A client that left, by whatever way, is one that says nothing more.
        left.set()
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()

    async def _pass(self, connection: _Connection, piece: bytes) -> bool:
        """One piece to the client, with whatever befalls it; False when the connection is over."""
        fault = self._fault
        if fault is None:
            await connection.send(piece)
            return True
        room = fault.after - connection.passed
        if len(piece) > room and self._take("reset", "fin", "stall", "corrupt"):
            return await self._break(connection, piece, max(room, 0), fault.kind)
        if fault.kind == "slow":
            await _slowly(connection, piece, fault.rate)
        else:
            await connection.send(piece)
        return True

    async def _break(self, connection: _Connection, piece: bytes, room: int, kind: Kind) -> bool:
        if kind == "corrupt":
            await connection.send(piece[:room] + bytes([piece[room] ^ 0xFF]) + piece[room + 1 :])
            return True
        if room:
            await connection.send(piece[:room])
        if kind == "stall":
            await connection.left.wait()
        if kind == "reset":
            await asyncio.sleep(_READ_SECONDS)
            connection.reset()
        return False

    def _take(self, *kinds: Kind) -> bool:
        """Whether one of these faults is set and has not happened often enough; counts it."""
        if not self._is(*kinds) or not self._left:
            return False
        self._left -= 1
        self.hits += 1
        return True

    def _is(self, *kinds: Kind) -> bool:
        return self._fault is not None and self._fault.kind in kinds


class _Connection:
    """A client's connection and, once there is one, that to the target."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.writers = [client]
        self.left = asyncio.Event()
        self.passed = 0

    async def send(self, piece: bytes) -> None:
        self.client.write(piece)
        await self.client.drain()
        self.passed += len(piece)

    def reset(self) -> None:
        for writer in self.writers:
            if not writer.transport.is_closing():
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            writer.transport.abort()

    def close(self) -> None:
        for writer in self.writers:
            writer.close()


async def _slowly(connection: _Connection, piece: bytes, rate: int) -> None:
    step = max(rate // 20, 1)
    for start in range(0, len(piece), step):
        part = piece[start : start + step]
        await connection.send(part)
        await asyncio.sleep(len(part) / rate)


def _socket(host: str, port: int) -> socket.socket:
    """Bound, and not listening."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((host, port))
    return bound
