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
