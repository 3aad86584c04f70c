"""The only file that uses private attributes of Granian; `tests/server/test_granian_seam.py` holds them.

Sources: granian/server/embed.py and granian/server/common.py of Granian 2.8.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Sequence
from typing import Any

from granian._granian import SocketHolder
from granian.constants import Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.server.embed import Server
from litestar import Litestar
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from appliance.api.websocket import LEAVING
from appliance.auth.certificates import Certificate

# Granian limits connections, idle ones included, and lets the next one hang; requests are limited elsewhere.
_MAX_CONNECTIONS = 65536

_POLL_SECONDS = 0.02

BACKLOG = 4096
"""Connections that wait to be accepted."""


class GranianServer:
    """One Granian server on a given socket, with the certificate it started with; `task` ends when it does."""

    def __init__(
        self, app: Litestar, listening: socket.socket, certificate: Certificate | None, header_seconds: float
    ) -> None:
        self._certificate_fds = _certificate_fds(certificate)
        self._listening = listening
        self._has_stopped = False
        self._app = app
        self._leaving = asyncio.Event()
        self._websockets: set[asyncio.Task[Any] | None] = set()
        self._server = _EmbeddedServer(self._handle, listening, self._certificate_fds, header_seconds)
        self.task = asyncio.create_task(self._serve())

    def stop_accepting(self) -> None:
        """Accept no more connections, and keep those there are."""
        # Granian goes on to accept, from an unused socket that replaces the listening one under its descriptor.
        with socket.socket(socket.AF_UNIX) as unused:
            unused.bind("")
            unused.listen()
            unused.setblocking(False)
            os.dup2(unused.fileno(), self._server.listening_fd, inheritable=False)

    async def close_websockets(self) -> None:
        """Close WebSockets after their running responses; Granian would cut them when it stops."""
        self._leaving.set()
        # Polled: a few times in the life of a server.
        while self._websockets:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)

    def _handle(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        is_websocket = scope["type"] == ScopeType.WEBSOCKET
        return (self._handle_websocket if is_websocket else self._app)(scope, receive, send)

    async def _handle_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        self._websockets.add(task)
        scope["extensions"] = {**(scope.get("extensions") or {}), LEAVING: self._leaving}  # type: ignore[dict-item]  # ours
        try:
            await self._app(scope, receive, send)
        finally:
            self._websockets.discard(task)

    def stop(self) -> None:
        """Accept no more connections, and finish the running requests."""
        if self._has_stopped or self.task.done():
            # The number of its descriptor may belong to another file by now.
            return
        self._has_stopped = True
        # Granian deregisters the descriptor that it registered, so that one is restored.
        os.dup2(self._listening.fileno(), self._server.listening_fd, inheritable=False)
        self._server.terminate()

    async def _serve(self) -> None:
        try:
            await self._server.serve()
        finally:
            for fd in self._certificate_fds:
                os.close(fd)


class _EmbeddedServer(Server):
    """Granian on an existing socket, with certificates that are not in files."""

    def __init__(
        self, app: ASGIApp, listening: socket.socket, certificate_fds: Sequence[int], header_seconds: float
    ) -> None:
        super().__init__(
            app,
            # The lifespan belongs to the listener, because it does not end with a certificate.
            interface=Interfaces.ASGINL,
            address=listening.getsockname()[0],
            port=listening.getsockname()[1],
            backlog=BACKLOG,
            backpressure=_MAX_CONNECTIONS,
            http1_settings=HTTP1Settings(header_read_timeout=round(header_seconds * 1000)),
            # Its records go to our log.
            log_dictconfig={"version": 1, "disable_existing_loggers": False, "loggers": {}},
        )
        # Granian owns this copy, and closes it.
        self.listening_fd = os.dup(listening.fileno())
        if certificate_fds:
            chain, key, *client_ca = (f"/proc/self/fd/{fd}" for fd in certificate_fds)
            authorities = client_ca[0] if client_ca else None
            oldest = str(SSLProtocols.tls12)
            # Granian annotates the value for no TLS.
            self.ssl_ctx: Any = (True, chain, key, None, oldest, authorities, [], authorities is not None)

    def terminate(self) -> None:
        """Stop; no connection is accepted after this call."""
        for worker in self.wrks:
            worker.terminate()  # type: ignore[no-untyped-call]  # Granian has no annotations there
        self.stop()  # type: ignore[no-untyped-call]

    def _init_shared_socket(self) -> None:
        self._shd = SocketHolder(self.listening_fd, False, BACKLOG)  # type: ignore[call-arg, assignment]  # an old stub

    async def _stop_workers(self) -> None:
        # Granian's own would terminate workers twice, which they do not allow.
        for worker in self.wrks:
            if worker.is_alive():  # type: ignore[no-untyped-call]
                worker.terminate()  # type: ignore[no-untyped-call]
            await worker.join()  # type: ignore[no-untyped-call]
        self.wrks.clear()


def _certificate_fds(certificate: Certificate | None) -> Sequence[int]:
    """Return descriptors of files in memory: Granian requires paths, and the config's files may change meanwhile."""
    fds = []
    if certificate is not None:
        for part in filter(None, (certificate.chain, certificate.key, certificate.client_ca)):
            fds.append(os.memfd_create("certificate", os.MFD_CLOEXEC))
            os.write(fds[-1], part)
    return fds
