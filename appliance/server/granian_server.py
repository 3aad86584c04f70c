"""One Granian on a socket of ours: what a listener has one after the other of."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from typing import Any

from granian._granian import SocketHolder
from granian.constants import Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.server.embed import Server
from litestar import Litestar

from appliance.server.tls import Certificate

# Granian caps connections, idle ones included, and lets the next one hang; calls are limited elsewhere.
_MOST_CONNECTIONS = 65536

BACKLOG = 4096
"""Connections that wait to be accepted."""


class GranianServer:
    """One Granian, with the certificate it began with; `task` is done when it is."""

    def __init__(
        self, app: Litestar, listening: socket.socket, certificate: Certificate | None, header_seconds: float
    ) -> None:
        self._files = _files(certificate)
        self._listening = listening
        self._has_stopped = False
        self._server = _Granian(app, listening, self._files if certificate else (), header_seconds)
        self.task = asyncio.create_task(self._serve())

    def turn_away(self) -> None:
        """Accept nothing any more, and go on with every connection there is."""
        # Under Granian's feet: it goes on to accept, from a socket that nobody knows.
        with socket.socket(socket.AF_UNIX) as nobodys:
            nobodys.bind("")
            nobodys.listen()
            nobodys.setblocking(False)
            os.dup2(nobodys.fileno(), self._server.listening_fd, inheritable=False)

    def stop(self) -> None:
        """Accept nothing any more, and finish what is asked for."""
        if self._has_stopped or self.task.done():
            # The number of its socket may be another file's by now.
            return
        self._has_stopped = True
        # What it waits for must be what it began to wait for, when it ceases to.
        os.dup2(self._listening.fileno(), self._server.listening_fd, inheritable=False)
        self._server.let_go()

    async def _serve(self) -> None:
        try:
            await self._server.serve()
        finally:
            for file in self._files:
                os.close(file)


class _Granian(Server):
    """Granian on a socket that is there already, with certificates that lie in no file."""

    def __init__(self, app: Litestar, listening: socket.socket, files: Sequence[int], header_seconds: float) -> None:
        super().__init__(
            app,
            # The lifespan is the listener's: it does not end with a certificate.
            interface=Interfaces.ASGINL,
            address=listening.getsockname()[0],
            port=listening.getsockname()[1],
            backlog=BACKLOG,
            backpressure=_MOST_CONNECTIONS,
            http1_settings=HTTP1Settings(header_read_timeout=round(header_seconds * 1000)),
            websockets=False,
            # Its records go where ours go.
            log_dictconfig={"version": 1, "disable_existing_loggers": False, "loggers": {}},
        )
        # Granian's from here on, which closes it.
        self.listening_fd = os.dup(listening.fileno())
        if files:
            chain, key, *client_ca = (f"/proc/self/fd/{file}" for file in files)
            authorities = client_ca[0] if client_ca else None
            oldest = str(SSLProtocols.tls12)
            # Granian's annotation is the one of no TLS.
            self.ssl_ctx: Any = (True, chain, key, None, oldest, authorities, [], authorities is not None)

    def let_go(self) -> None:
        """Stop, with the first step taken before this returns."""
        for worker in self.wrks:
            worker.terminate()  # type: ignore[no-untyped-call]  # Granian leaves it without annotations
        self.stop()  # type: ignore[no-untyped-call]

    def _init_shared_socket(self) -> None:
        self._shd = SocketHolder(self.listening_fd, False, BACKLOG)  # type: ignore[call-arg, assignment]  # an old stub

    async def _stop_workers(self) -> None:
        # Granian's would tell those that were told already, which they do not take.
        for worker in self.wrks:
            if worker.is_alive():  # type: ignore[no-untyped-call]
                worker.terminate()  # type: ignore[no-untyped-call]
            await worker.join()  # type: ignore[no-untyped-call]
        self.wrks.clear()


def _files(certificate: Certificate | None) -> Sequence[int]:
    """The certificate as files in memory: Granian wants paths, and those of the config may change while it reads."""
    if certificate is None:
        return ()
    parts: Sequence[bytes | None] = (certificate.chain, certificate.key, certificate.client_ca)
    return [_file(part) for part in parts if part is not None]


def _file(content: bytes) -> int:
    file = os.memfd_create("certificate", os.MFD_CLOEXEC)
    os.write(file, content)
    return file
