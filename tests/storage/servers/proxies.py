"""A proxy of a company's network on the loopback: of HTTP, with and without tunnels, and of SOCKS5."""

from __future__ import annotations

import asyncio
import ssl
import struct
from contextlib import suppress

from background import Background, listen, stop_listening
from yarl import URL

_SOCKS_DONE = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00"


class ProxyServer(Background):
    """Connects to ports of the loopback, whatever host is asked for; `targets` are the hosts, with their ports."""

    def __init__(self) -> None:
        super().__init__()
        self.port = 0
        self.targets: list[str] = []
        self.logins: set[str] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen."""
        self._server = await listen(self._serve)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Listen no more."""
        assert self._server is not None
        await stop_listening(self._server)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                first = await reader.readexactly(1)
                await (self._socks(reader, writer) if first == b"\x05" else self._http(first, reader, writer))
        finally:
            writer.close()

    async def _http(self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = first + await reader.readuntil(b"\r\n\r\n")
        line, *headers = head.rstrip().split(b"\r\n")
        method, target, _ = line.decode().split(" ")
        self.logins |= {each[21:].decode() for each in headers if each.lower().startswith(b"proxy-authorization: ")}
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await self._carry(host, int(port), b"", reader, writer)
            return
        url = URL(target, encoded=True)
        kept = [each for each in headers if not each.lower().startswith((b"proxy-", b"connection:"))]
        request = [f"{method} {url.raw_path_qs} HTTP/1.1".encode(), *kept, b"Connection: close", b"", b""]
        await self._carry(url.host or "", url.port or 80, b"\r\n".join(request), reader, writer)

    async def _socks(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """RFC 1928, without a login."""
        await reader.readexactly((await reader.readexactly(1))[0])
        writer.write(b"\x05\x00")
        kind = (await reader.readexactly(4))[3]
        if kind == 3:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        else:
            host = ".".join(map(str, await reader.readexactly(4)))
        (port,) = struct.unpack(">H", await reader.readexactly(2))
        writer.write(_SOCKS_DONE)
        await self._carry(host, port, b"", reader, writer)

    async def _carry(
        self, host: str, port: int, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.targets.append(f"{host}:{port}")
        await _connect(port, request, reader, writer)


async def _connect(port: int, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes to a port of the loopback, the request first, and back."""
    there = await asyncio.open_connection("127.0.0.1", port)
    there[1].write(request)
    upward = asyncio.create_task(_pump(reader, there[1]))
    try:
        await _pump(there[0], writer)
    finally:
        upward.cancel()
        there[1].close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()


class TlsFront(Background):
    """Answers on a port of the loopback with a certificate, for the server on another port."""

    def __init__(self, target_port: int, context: ssl.SSLContext) -> None:
        super().__init__()
        self.port = 0
        self._target_port = target_port
        self._context = context
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen."""
        self._server = await listen(self._serve, context=self._context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Listen no more."""
        assert self._server is not None
        await stop_listening(self._server)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _connect(self._target_port, b"", reader, writer)
        finally:
            writer.close()
