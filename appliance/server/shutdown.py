"""How the server leaves: readiness first, then clients, then what is under way, then connections, then models."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from appliance.models.manager import ModelManager
from appliance.server.listener import Listener
from appliance.server.probe_server import ProbeListener

if TYPE_CHECKING:
    import grpc

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# A call on its way while its connection is asked to close is still answered; it arrives within that.
_LATE_SECONDS = 1.0

# How long connections may take to close once nothing answers any more.
_CLOSE_SECONDS = 5.0


async def shutdown_gracefully(
    manager: ModelManager,
    servers: Sequence[Listener | ProbeListener],
    serving: Sequence[asyncio.Task[None]],
    grpc_server: grpc.aio.Server | None,
    *,
    is_expected: bool,
) -> None:
    """Drain, close every connection, and stop the models; `serving` are the tasks of the servers.

    `is_expected` is that somebody tells those who send calls here, which takes a while in which they are answered.
    """
    settings = manager.config.server
    delay = settings.drain_delay_seconds if is_expected else 0
    closing: list[asyncio.Future[None]] = list(serving)

    def end_grpc(seconds: float) -> None:
        if grpc_server is not None:
            closing.append(asyncio.ensure_future(grpc_server.stop(seconds)))

    def dismiss() -> None:
        for server in servers:
            server.dismiss()
        # It knows no other way to tell its clients.
        end_grpc(settings.drain_seconds)

    log.info("server.draining", delay_seconds=delay, seconds=settings.drain_seconds)
    await manager.drain(settings.drain_seconds, delay, dismiss)
    for server in servers:
        server.stop()
    end_grpc(_CLOSE_SECONDS)
    await asyncio.wait(closing, timeout=_LATE_SECONDS)
    await manager.stop()
    # Bounded: Granian waits for every connection, and a client may never read what it asked for.
    await asyncio.wait(closing, timeout=_CLOSE_SECONDS)
