"""
A port that HTTP is answered on, whose certificate changes without a connection lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Any

from granian._granian import SocketHolder
from granian.constants import Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.server.embed import Server
from litestar import Litestar

from appliance.access.certificates import Certificate, Certificates

# Granian caps connections, idle ones included, and lets the next one hang; calls are limited elsewhere.
_BACKLOG = 4096
_MOST_CONNECTIONS = 65536

# What a client does not read is held up here, where the rest of a stream can still be put together, and not in the
# kernel, which would take megabytes of it. A smaller number slows down large answers.
_MOST_UNSENT_BYTES = 64 * 1024

# How late new connections may see a new certificate.
_LOOK_SECONDS = 2.0

# How long two generations accept side by side: Granian does not say when the new one has begun.
_OVERLAP_SECONDS = 0.5

# Granian's own default.
_HEADER_SECONDS = 30.0

# How long connections may take to ask for something: Granian, when it stops, closes those that have not.
_SETTLE_SECONDS = 10.0


class Listener:
    """
    Granian on a socket of ours.

    Granian reads certificates when it starts and never again. So a new one is served by a new Granian on the same
    socket, whose queue loses nothing, and the old one accepts no more, and ends when what it has is done.
    """

    def __init__(
        self,
        app: Litestar,
        host: str,
        port: int,
        certificates: Certificates | None = None,
        *,
        header_seconds: float = _HEADER_SECONDS,
        settle_seconds: float = _SETTLE_SECONDS,
    ) -> None:
        """
        `header_seconds` bounds the head of a request, and the silence between two of one connection.
        """
        self._app = app
        self._header_seconds = header_seconds
        self._settle_seconds = settle_seconds
        self._address = host, port
        self._certificates = certificates
        self._stopped = asyncio.Event()

    async def serve(self) -> None:
        """
        Answer until `stop`, and then until every connection is done.

        Raises:
            OSError: somebody else has the port.
        """
        with _listening(*self._address) as listening:
            async with self._app.lifespan():
                await self._serve(listening)

    def stop(self) -> None:
        """
        Accept nothing any more.
        """
        self._stopped.set()

    async def _serve(self, listening: socket.socket) -> None:
        generation = self._generation(listening)
        stopped = asyncio.create_task(self._stopped.wait())
        retiring: dict[asyncio.Task[None], _Generation] = {}
        try:
            while not stopped.done() and not generation.task.done():
                await asyncio.wait(
                    (stopped, generation.task), timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                retiring = {task: old for task, old in retiring.items() if not task.done()}
                if not stopped.done() and await self._has_changed():
                    old, generation = generation, await self._succeed(generation, listening)
                    if generation is not old:
                        retiring[asyncio.create_task(self._retire(old))] = old
            for each in (generation, *retiring.values()):
                each.stop()
            # Whoever comes now is told at once that nobody listens.
            listening.close()
            # Those before the last one may still have streams under way.
            await asyncio.gather(generation.task, *retiring)
        finally:
            for task in (stopped, generation.task, *retiring):
                task.cancel()

    async def _has_changed(self) -> bool:
        return self._certificates is not None and await asyncio.to_thread(self._certificates.refresh)

    async def _succeed(self, old: _Generation, listening: socket.socket) -> _Generation:
        new = self._generation(listening)
        await asyncio.wait({new.task}, timeout=_OVERLAP_SECONDS)
        return old if new.task.done() else new

    async def _retire(self, old: _Generation) -> None:
        old.turn_away()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), self._settle_seconds)
        old.stop()
        await old.task

    def _generation(self, listening: socket.socket) -> _Generation:
        certificate = None if self._certificates is None else self._certificates.current
        return _Generation(self._app, listening, certificate, self._header_seconds)


class _Generation:
    """
    One Granian, with the certificate it began with.
    """

    def __init__(
        self, app: Litestar, listening: socket.socket, certificate: Certificate | None, header_seconds: float
    ) -> None:
        self._files = _files(certificate)
        self._listening = listening
        self._has_stopped = False
        self._server = _Granian(app, listening, self._files if certificate else (), header_seconds)
        self.task = asyncio.create_task(self._serve())

    def turn_away(self) -> None:
        """
        Accept nothing any more, and go on with every connection there is.
        """
        # Under Granian's feet: it goes on to accept, from a socket that nobody knows.
        with socket.socket(socket.AF_UNIX) as nobodys:
            nobodys.bind("")
            nobodys.listen()
            nobodys.setblocking(False)
            os.dup2(nobodys.fileno(), self._server.listening_fd, inheritable=False)

    def stop(self) -> None:
        """
        Accept nothing any more, and finish what is asked for.
        """
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
    """
    Granian on a socket that is there already, with certificates that lie in no file.
    """

    def __init__(self, app: Litestar, listening: socket.socket, files: Sequence[int], header_seconds: float) -> None:
        super().__init__(
            app,
            # The lifespan is the listener's: it does not end with a certificate.
            interface=Interfaces.ASGINL,
            address=listening.getsockname()[0],
            port=listening.getsockname()[1],
            backlog=_BACKLOG,
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
        """
        Stop, with the first step taken before this returns.
        """
        for worker in self.wrks:
            worker.terminate()  # type: ignore[no-untyped-call]  # Granian leaves it without annotations
        self.stop()  # type: ignore[no-untyped-call]

    def _init_shared_socket(self) -> None:
        self._shd = SocketHolder(self.listening_fd, False, _BACKLOG)  # type: ignore[call-arg, assignment]  # an old stub

    async def _stop_workers(self) -> None:
        # Granian's would tell those that were told already, which they do not take.
        for worker in self.wrks:
            if worker.is_alive():  # type: ignore[no-untyped-call]
                worker.terminate()  # type: ignore[no-untyped-call]
            await worker.join()  # type: ignore[no-untyped-call]
        self.wrks.clear()


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Shared with the other workers, each of which has a queue of its own.
    is_six = family is socket.AF_INET6
    listening = socket.create_server(
        (host, port), family=family, backlog=_BACKLOG, reuse_port=True, dualstack_ipv6=is_six
    )
    listening.setblocking(False)
    # Connections inherit it: a token of a stream goes out at once.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MOST_UNSENT_BYTES)
    return listening


def _files(certificate: Certificate | None) -> Sequence[int]:
    """
    The certificate as files in memory: Granian wants paths, and those of the config may change while it reads.
    """
    if certificate is None:
        return ()
    parts: Sequence[bytes | None] = (certificate.chain, certificate.key, certificate.client_ca)
    return [_file(part) for part in parts if part is not None]


def _file(content: bytes) -> int:
    file = os.memfd_create("certificate", os.MFD_CLOEXEC)
    os.write(file, content)
    return file
