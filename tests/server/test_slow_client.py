"""A client that reads slower than a model writes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable

from litestar import Litestar, get
from litestar.response import Stream
from server_process import free_port

from appliance.server.listener import Listener

PIECE = b"x" * 1024
PIECES = 4096


async def test_what_a_client_does_not_read_is_not_asked_of_the_model() -> None:
    """A few hundred kilobytes are under way at most; all of it comes once it is read."""
    made = 0

    @get("/")
    async def story() -> Stream:
        async def pieces() -> AsyncGenerator[bytes]:
            nonlocal made
            for made in range(1, PIECES + 1):  # noqa: B007 - counted for the test
                yield PIECE

        return Stream(pieces())

    port = free_port()
    listener = Listener(Litestar([story], openapi_config=None), "127.0.0.1", port)
    serving = asyncio.create_task(listener.serve())
    with await _connect(port) as connection:
        held_up_at = await _wait_until_stable(lambda: made)
        answer = await asyncio.to_thread(_read_all, connection)
    listener.stop()
    await asyncio.wait_for(serving, 20)

    assert 0 < held_up_at < 512
    assert answer.count(b"x") == PIECES * len(PIECE)


async def _connect(port: int) -> socket.socket:
    """A connection that has asked, and reads only when it is read from."""
    async with asyncio.timeout(20):
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", port), timeout=20)
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)
            else:
                break
    connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    return connection


async def _wait_until_stable(count: Callable[[], int]) -> int:
    """What it comes to and stays."""
    before = 0
    while not count() or count() != before:
        before = count()
        await asyncio.sleep(0.3)
    return before


def _read_all(connection: socket.socket) -> bytes:
    received = bytearray()
    while piece := connection.recv(1 << 20):
        received += piece
    return bytes(received)
