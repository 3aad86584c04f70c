"""Graceful shutdown: readiness off, clients dismissed, requests finished, connections closed, models stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from appliance.models.manager import ModelManager
from appliance.server.listener import Listener, ThreadedListener

if TYPE_CHECKING:
    import grpc

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# A request that is sent while its connection is being closed arrives within this time, and is answered.
_LATE_REQUEST_SECONDS = 1.0

# How long connections may take to close after that.
_CLOSE_SECONDS = 5.0


async def shutdown_gracefully(
    manager: ModelManager,
    listeners: Sequence[Listener | ThreadedListener],
    serving: Sequence[asyncio.Task[None]],
    grpc_server: grpc.aio.Server | None,
    *,
    is_expected: bool,
) -> None:
    """Drain, close every connection, and stop the models; `serving` are the tasks of the listeners.

    If `is_expected` (a platform ends the server), requests are answered for `drain_delay_seconds` while load balancers
    learn of it.
    """
    settings = manager.config.server
    delay = settings.drain_delay_seconds if is_expected else 0
    closing: list[asyncio.Future[None]] = list(serving)

    def stop_grpc(seconds: float) -> None:
        if grpc_server is not None:
            closing.append(asyncio.ensure_future(grpc_server.stop(seconds)))

    def dismiss() -> None:
        for listener in listeners:
            listener.dismiss()
        # gRPC has no other way to tell its clients.
        stop_grpc(settings.drain_seconds)

    log.info("server.draining", delay_seconds=delay, seconds=settings.drain_seconds)
    await manager.drain(settings.drain_seconds, delay, dismiss)
    for listener in listeners:
        listener.stop()
    stop_grpc(_CLOSE_SECONDS)
    await asyncio.wait(closing, timeout=_LATE_REQUEST_SECONDS)
    await manager.stop()
    # Bounded: Granian waits for every connection, and a client may never read its response.
    await asyncio.wait(closing, timeout=_CLOSE_SECONDS)
