"""A port that HTTP is answered on, whose certificate changes, and whose clients can be sent away, without a loss."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from litestar import Litestar

from appliance.server.granian_server import BACKLOG, GranianServer
from appliance.server.tls import Certificates

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

# The same where clients are to go, and know it.
_DISMISS_SECONDS = 0.5


class Listener:
    """Granian on a socket of ours.

    Granian reads certificates when it starts and never again, and tells connections of HTTP/2 to go only when it stops.
    So a new certificate, or whoever comes after the others were told to go, is served by a new Granian on the same
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
        """`header_seconds` bounds the head of a request, and the silence between two of one connection."""
        self._app = app
        self._header_seconds = header_seconds
        self._settle_seconds = settle_seconds
        self._address = host, port
        self._certificates = certificates
        self._dismissed = asyncio.Event()
        self._stopped = asyncio.Event()

    async def serve(self) -> None:
        """Answer until `stop`, and then until every connection is done.

        Raises:
            OSError: somebody else has the port.
        """
        with _listening(*self._address) as listening:
            async with self._app.lifespan():
                await self._serve(listening)

    def dismiss(self) -> None:
        """Have every connection end with what is under way on it; HTTP/2 says so to its clients. New ones are answered.

        Source: RFC 9113, section 6.8.
        """
        self._dismissed.set()

    def stop(self) -> None:
        """Accept nothing any more."""
        self._stopped.set()

    async def _serve(self, listening: socket.socket) -> None:
        generation = self._generation(listening)
        retiring: dict[asyncio.Task[None], GranianServer] = {}
        try:
            while not self._stopped.is_set() and not generation.task.done():
                await self._news(generation)
                retiring = {task: old for task, old in retiring.items() if not task.done()}
                if (settle_seconds := await self._settling()) is not None:
                    old, generation = generation, await self._succeed(generation, listening)
                    if generation is not old:
                        retiring[asyncio.create_task(self._retire(old, settle_seconds))] = old
            for each in (generation, *retiring.values()):
                each.stop()
            # Whoever comes now is told at once that nobody listens.
            listening.close()
            # Those before the last one may still have streams under way.
            await asyncio.gather(generation.task, *retiring)
        finally:
            for task in (generation.task, *retiring):
                task.cancel()

    async def _news(self, generation: GranianServer) -> None:
        """Return when something is asked for, or over, and when it is time to look at the certificate."""
        asked = [asyncio.create_task(each.wait()) for each in (self._stopped, self._dismissed)]
        await asyncio.wait((generation.task, *asked), timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for each in asked:
            each.cancel()

    async def _settling(self) -> float | None:
        """
        How long connections have to ask for something, where another generation is to take over; None where none is.
        """
        if self._stopped.is_set():
            return None
        if self._dismissed.is_set():
            self._dismissed.clear()
            return _DISMISS_SECONDS
        has_changed = self._certificates is not None and await asyncio.to_thread(self._certificates.refresh)
        return self._settle_seconds if has_changed else None

    async def _succeed(self, old: GranianServer, listening: socket.socket) -> GranianServer:
        new = self._generation(listening)
        await asyncio.wait({new.task}, timeout=_OVERLAP_SECONDS)
        return old if new.task.done() else new

    async def _retire(self, old: GranianServer, settle_seconds: float) -> None:
        old.turn_away()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), settle_seconds)
        old.stop()
        await old.task

    def _generation(self, listening: socket.socket) -> GranianServer:
        certificate = None if self._certificates is None else self._certificates.current
        return GranianServer(self._app, listening, certificate, self._header_seconds)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Shared with the other workers, each of which has a queue of its own.
    is_six = family is socket.AF_INET6
    listening = socket.create_server(
        (host, port), family=family, backlog=BACKLOG, reuse_port=True, dualstack_ipv6=is_six
    )
    listening.setblocking(False)
    # Connections inherit it: a token of a stream goes out at once.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MOST_UNSENT_BYTES)
    return listening
