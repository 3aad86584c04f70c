"""Servers of raw bytes, with and without TLS, and an HTTP proxy."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, suppress

from background import listen

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


@asynccontextmanager
async def raw_server(
    pieces: Iterable[bytes], context: ssl.SSLContext | None = None, *, waits: bool = True
) -> AsyncGenerator[int]:
    """Yield the port of a server that sends pieces, perhaps endlessly; `waits` is for the head of a request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            if waits:
                await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
        writer.close()

    server = await listen(serve, context=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


class KeepAliveServer:
    """Keeps connections open; what it does with each request is one of `ANSWER`, `ANSWER_AND_END` and `CLOSE`."""

    ANSWER = "answer"
    ANSWER_AND_END = "answer and end"
    """Closes the idle connection, and waits until the client has noticed."""
    CLOSE = "close"
    """Closes the connection at the first byte of the request."""

    def __init__(self, *actions: str) -> None:
        self._actions = iter(actions)
        self.connections = self.requests = 0
        self.was_noticed = asyncio.Event()

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[str]:
        """Yield its URL."""
        async with await listen(self._serve) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        for action in self._actions:
            await reader.readexactly(1)
            self.requests += 1
            if action == self.CLOSE:
                break
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
            writer.write(OK)
            if action == self.ANSWER_AND_END:
                writer.write_eof()
                await reader.read()
                self.was_noticed.set()
                break
        writer.close()


@asynccontextmanager
async def http_proxy(heads: list[bytes]) -> AsyncGenerator[int]:
    """
    The port of an HTTP proxy that makes http_proxy, and answers plain requests itself; `heads` gets what it was sent.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heads.append(head)
        if not head.startswith(b"CONNECT "):
            writer.write(OK)
            await writer.drain()
            writer.close()
            return
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        there = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_pump(reader, there[1]), _pump(there[0], writer))

    server = await listen(serve)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    writer.close()
