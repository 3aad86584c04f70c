"""
The process: Granian in this event loop, signals of our own, and an end that leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import structlog
import uvloop
from granian.constants import Interfaces
from granian.server.embed import Server
from litestar import Litestar

from appliance import logs
from appliance.config import Config
from appliance.errors import ApplianceError
from appliance.lifecycle import Lifecycle
from appliance.processes import leave
from appliance.protocols import oip_grpc
from appliance.server.app import create_app, create_probes
from appliance.server.outlook import Seat
from appliance.server.supervisor import Supervisor, worker_count

if TYPE_CHECKING:
    import grpc

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# Granian caps connections, idle ones included, and lets the next one hang; calls are limited elsewhere.
_BACKLOG = 4096
_MOST_CONNECTIONS = 65536

_STOPS = (signal.SIGTERM, signal.SIGINT)

# How long connections may take to close after the drain.
_CLOSE_SECONDS = 5.0

# How long a worker may take to end after its drain; models close in it, and connections.
_LEAVE_SECONDS = 15.0


def run(config: Config, secrets: Collection[str] = ()) -> NoReturn:
    """
    Serve until a signal, then leave the process: 0 after a drain, 1 when it could not serve.
    """
    leave(serve(config, secrets))


def serve(config: Config, secrets: Collection[str] = ()) -> int:
    """
    Serve until a signal: 0 after a drain, else the exit code that says why not.
    """
    logs.configure(config.logging.format, config.logging.level, secrets)
    try:
        return _run(config, secrets)
    except ApplianceError as error:
        log.error("server.failed", reason=str(error))
        return error.exit_code


def _run(config: Config, secrets: Collection[str]) -> int:
    server = config.server
    for key, port in (("port", server.port), ("probe_port", server.probe_port), ("grpc_port", server.grpc_port)):
        if port is not None:
            _require_free(server.host, port, f"server.{key}")
    if config.server.grpc_port is not None:
        oip_grpc.require()
    work = partial(_work, config, secrets)
    count = worker_count(config)
    if count == 1:
        return work(None)
    return Supervisor(count, work, config.server.drain_seconds + _LEAVE_SECONDS).run()


def _work(config: Config, secrets: Collection[str], seat: Seat | None) -> int:
    return asyncio.Runner(loop_factory=uvloop.new_event_loop).run(_serve(config, secrets, seat))


async def _serve(config: Config, secrets: Collection[str], seat: Seat | None) -> int:
    app = create_app(config, seat, secrets)
    lifecycle: Lifecycle = app.state.lifecycle
    servers = [_server(app, config, config.server.port)]
    if config.server.probe_port is not None:
        servers.append(_server(create_probes(config, app.state.outlook), config, config.server.probe_port))
    grpc_server = await _grpc_server(app, config, seat)
    signals = _Signals()
    serving = [asyncio.create_task(server.serve()) for server in servers]
    log.info(
        "server.started",
        host=config.server.host,
        port=config.server.port,
        probe_port=config.server.probe_port,
        grpc_port=config.server.grpc_port,
    )
    await asyncio.wait((*serving, signals.first), return_when=asyncio.FIRST_COMPLETED)
    ended = [task for task in serving if task.done()]
    for task in ended:
        log.error("server.failed", reason=str(task.exception() or "Granian ended by itself"))
    log.info("server.draining", seconds=config.server.drain_seconds)
    await lifecycle.drain(config.server.drain_seconds)
    await lifecycle.stop()
    for server in servers:
        server.stop()  # type: ignore[no-untyped-call]  # Granian leaves it without annotations
    # Bounded: Granian waits for every connection, and a client may never read what it asked for.
    await asyncio.wait(serving, timeout=_CLOSE_SECONDS)
    if grpc_server is not None:
        await grpc_server.stop(_CLOSE_SECONDS)
    signals.close()
    log.info("server.stopped")
    return 1 if ended else 0


async def _grpc_server(app: Litestar, config: Config, seat: Seat | None) -> grpc.aio.Server | None:
    if config.server.grpc_port is None:
        return None
    # Not before a worker is a process of its own: gRPC's threads do not outlive a fork.
    from appliance.protocols.oip_grpc.server import create_server

    standing = app.state.outlook.standing
    server, _ = create_server(config, app.state.lifecycle, standing, has_company=seat is not None)
    await server.start()
    return server


class _Signals:
    """
    `first` is done with the first SIGTERM or SIGINT; the second one ends the process at once.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.first: asyncio.Future[None] = loop.create_future()
        for number in _STOPS:
            loop.add_signal_handler(number, self._receive, number)
        # A worker is born with them blocked, so that none is lost before somebody listens.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})

    def close(self) -> None:
        """
        Leave signals to what comes after.
        """
        for number in _STOPS:
            asyncio.get_running_loop().remove_signal_handler(number)

    def _receive(self, number: signal.Signals) -> None:
        log.info("signal.received", signal=number.name)
        if self.first.done():
            leave(128 + number)
        self.first.set_result(None)


def _server(app: Litestar, config: Config, port: int) -> Server:
    return Server(
        app,
        address=config.server.host,
        port=port,
        interface=Interfaces.ASGI,
        backlog=_BACKLOG,
        backpressure=_MOST_CONNECTIONS,
        websockets=False,
        # Its records go where ours go.
        log_dictconfig={"version": 1, "disable_existing_loggers": False, "loggers": {}},
    )


def _require_free(host: str, port: int, key: str) -> None:
    """
    Granian shares a port with whoever holds it already, and both would get half of the requests.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ApplianceError(
                f"cannot listen on {host} port {port}: {error.strerror}; choose another {key}"
            ) from error
