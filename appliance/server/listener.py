"""A port of HTTP whose certificate can change, and whose clients can be dismissed, without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

import uvloop
from litestar import Litestar

from appliance.auth.certificates import Certificates
from appliance.server.granian_server import BACKLOG, GranianServer

# Data that a client does not read waits here, where the rest of a stream can still be joined to it, and not in the
# kernel, which would take megabytes of it. A smaller limit slows down large responses.
_MAX_UNSENT_BYTES = 64 * 1024

# How late new connections may see a new certificate.
_CHECK_SECONDS = 2.0

# How long two servers accept side by side: Granian does not report when the new one has begun.
_OVERLAP_SECONDS = 0.5

# Granian's own default.
_HEADER_SECONDS = 30.0

# How long new connections may take to send a request before Granian, when it stops, closes those that have not.
_SETTLE_SECONDS = 10.0

# How long WebSockets may take to close when the server stops.
_CLOSE_SECONDS = 1.0

# The same when clients are to leave, and know it.
_DISMISS_SECONDS = 0.5


class Listener:
    """Granian servers on one socket, one after the other.

    Granian reads certificates only when it starts, and sends GOAWAY to connections of HTTP/2 only when it stops. So for
    a new certificate, and after a dismissal, a new server accepts from the same socket, whose queue loses nothing, and
    the old one accepts no more and ends when its connections are done.
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
        before_listening: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        """`header_seconds` limits the time for the head of a request, and between two requests of a connection.

        Without `before_listening` the port listens before the application starts.
        """
        self._app = app
        self._address = host, port
        self._certificates = certificates
        self._header_seconds = header_seconds
        self._settle_seconds = settle_seconds
        self._before_listening = before_listening
        self._is_dismissed = False
        self._stopped = asyncio.Event()
        self._woken = asyncio.Event()

    async def serve(self) -> None:
        """Serve until `stop`, and then until every connection is done.

        Raises:
            OSError: another process has the port.
        """
        if self._before_listening is None:
            with _listening(*self._address) as listening:
                async with self._app.lifespan():
                    await self._serve(listening)
            return
        async with self._app.lifespan():
            waits = [asyncio.create_task(each) for each in (self._before_listening(), self._stopped.wait())]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in waits:
                    each.cancel()
            if not self._stopped.is_set():
                waits[0].result()
                with _listening(*self._address) as listening:
                    await self._serve(listening)

    def dismiss(self) -> None:
        """Close every connection after its running requests; HTTP/2 clients get GOAWAY (RFC 9113, section 6.8).

        New connections are accepted.
        """
        self._is_dismissed = True
        self._woken.set()

    def stop(self) -> None:
        """Accept no more connections."""
        self._stopped.set()
        self._woken.set()

    async def _serve(self, listening: socket.socket) -> None:
        server = self._start(listening)
        retiring: dict[asyncio.Task[None], GranianServer] = {}
        try:
            while not self._stopped.is_set() and not server.task.done():
                settle_seconds = await self._next_replacement(server)
                retiring = {task: old for task, old in retiring.items() if not task.done()}
                if settle_seconds is not None:
                    new = self._start(listening)
                    await asyncio.wait({new.task}, timeout=_OVERLAP_SECONDS)
                    if not new.task.done():
                        retiring[asyncio.create_task(self._retire(server, settle_seconds))] = server
                        server = new
            servers = (server, *retiring.values())
            await asyncio.wait(
                [asyncio.create_task(each.close_websockets()) for each in servers], timeout=_CLOSE_SECONDS
            )
            for each in servers:
                each.stop()
            # New clients are refused at once.
            listening.close()
            # Earlier servers may still have running streams.
            await asyncio.gather(server.task, *retiring)
        finally:
            for task in (server.task, *retiring):
                task.cancel()

    def _start(self, listening: socket.socket) -> GranianServer:
        certificate = None if self._certificates is None else self._certificates.current
        return GranianServer(self._app, listening, certificate, self._header_seconds)

    async def _next_replacement(self, server: GranianServer) -> float | None:
        """Wait for an event, or until the certificate is to be checked.

        Return how long connections of the server have to send a request before it is replaced; None if it stays.
        """
        woken = asyncio.create_task(self._woken.wait())
        await asyncio.wait({server.task, woken}, timeout=_CHECK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        woken.cancel()
        self._woken.clear()
        if self._stopped.is_set():
            return None
        if self._is_dismissed:
            self._is_dismissed = False
            return _DISMISS_SECONDS
        has_changed = self._certificates is not None and await asyncio.to_thread(self._certificates.refresh)
        return self._settle_seconds if has_changed else None

    async def _retire(self, old: GranianServer, settle_seconds: float) -> None:
        old.stop_accepting()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), settle_seconds)
        await old.close_websockets()
        old.stop()
        await old.task


class ThreadedListener(Listener):
    """A listener in a thread with an event loop of its own, so that probes are answered whatever the server does."""

    async def serve(self) -> None:
        """Serve; see `Listener.serve`."""
        self._loop = uvloop.new_event_loop()
        ended: Future[None] = Future()
        threading.Thread(target=self._run, args=(super().serve(), ended), name="probes", daemon=True).start()
        await asyncio.wrap_future(ended)

    def dismiss(self) -> None:
        """Close every connection after its running requests."""
        self._call(super().dismiss)

    def stop(self) -> None:
        """Accept no more connections."""
        self._call(super().stop)

    def _run(self, work: Coroutine[Any, Any, None], ended: Future[None]) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(work)
        except BaseException as error:
            ended.set_exception(error)
        else:
            ended.set_result(None)

    def _call(self, function: Callable[[], None]) -> None:
        # The loop may have ended by itself.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)


def _listening(host: str, port: int) -> socket.socket:
    is_ipv6 = ":" in host
    # Each worker has a socket on this port, with a queue of its own.
    listening = socket.create_server(
        (host, port),
        family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
        backlog=BACKLOG,
        reuse_port=True,
        dualstack_ipv6=is_ipv6,
    )
    listening.setblocking(False)
    # Connections inherit these options: each token of a stream is sent at once.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MAX_UNSENT_BYTES)
    return listening
