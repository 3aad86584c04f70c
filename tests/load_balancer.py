"""A load balancer of connections that follows readiness, like a Service of Kubernetes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import closing, suppress

import aiohttp
from background import Background, listen, stop_listening

# Interval of its probes; a cluster takes longer, and so do its servers to stop.
_PROBE_SECONDS = 0.2


class LoadBalancer(Background):
    """Forwards each new connection to the next ready server; it retries nothing."""

    def __init__(self, ports: Sequence[int]) -> None:
        super().__init__()
        self.port = 0
        self.ready: list[int] = []
        self._ports = ports
        self._turns = itertools.count()
        self._server: asyncio.Server | None = None
        self._probing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Listen, and start to probe."""
        self._server = await listen(self._serve)
        self.port = self._server.sockets[0].getsockname()[1]
        self._probing = asyncio.create_task(self._probe())

    async def close(self) -> None:
        """Stop to listen; open connections end with the event loop."""
        if self._server is not None and self._probing is not None:
            await stop_listening(self._server)
            self._probing.cancel()

    async def _probe(self) -> None:
        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                answers = await asyncio.gather(*(_is_ready(session, port) for port in self._ports))
                self.ready = [port for port, is_ready in zip(self._ports, answers, strict=True) if is_ready]
                await asyncio.sleep(_PROBE_SECONDS)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            if not self.ready:
                return
            port = self.ready[next(self._turns) % len(self.ready)]
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            with closing(far_writer):
                pipes = [asyncio.create_task(_pipe(*each)) for each in ((reader, far_writer), (far_reader, writer))]
                await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
                for pipe in pipes:
                    pipe.cancel()


async def _is_ready(session: aiohttp.ClientSession, port: int) -> bool:
    try:
        async with session.get(f"http://127.0.0.1:{port}/readyz") as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Forward bytes until one of the two sides closes."""
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
