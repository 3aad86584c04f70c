"""An SSH server with files, by asyncssh."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncssh

USER = "model"
PASSWORD = "s3cret-of-sftp"

_SECONDS = itertools.count(1_700_000_000)


@dataclass(frozen=True, slots=True)
class SftpServer:
    """A server whose root is a directory; `host_key` is the type and the text of its key."""

    root: Path
    port: int
    host_key: str

    @property
    def known_hosts(self) -> str:
        """What makes its key known to OpenSSH."""
        return f"[127.0.0.1]:{self.port} {self.host_key}\n"

    def put(self, name: str, data: bytes) -> None:
        """Store a file, with a time of its own: the protocol counts seconds."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        second = next(_SECONDS)
        os.utime(path, (second, second))


@contextmanager
def running(root: Path) -> Iterator[SftpServer]:
    """The server in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = _serving(root)
    try:
        yield asyncio.run_coroutine_threadsafe(anext(server), loop).result(30)
        asyncio.run_coroutine_threadsafe(server.aclose(), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _serving(root: Path) -> AsyncGenerator[SftpServer]:
    connections: list[asyncssh.SSHServerConnection] = []

    class Server(asyncssh.SSHServer):
        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            connections.append(conn)

        def begin_auth(self, username: str) -> bool:
            return True

        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, password: str) -> bool:
            return (username, password) == (USER, PASSWORD)

    class Files(asyncssh.SFTPServer):
        def __init__(self, channel: asyncssh.SSHServerChannel[bytes]) -> None:
            super().__init__(channel, chroot=str(root).encode())

    key = asyncssh.generate_private_key("ssh-ed25519")
    acceptor = await asyncssh.listen("127.0.0.1", 0, server_factory=Server, sftp_factory=Files, server_host_keys=[key])
    try:
        yield SftpServer(root, acceptor.get_port(), key.export_public_key().decode().strip())
    finally:
        acceptor.close()
        for connection in connections:
            connection.abort()
            await connection.wait_closed()
