"""The process: Granian in this event loop, signals of our own, and an end that leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

import structlog
import uvloop
from litestar import Litestar

from appliance.api import grpc as oip_grpc
from appliance.config import Config, LoadedConfig
from appliance.core import logging_setup
from appliance.core.errors import ApplianceError
from appliance.core.logging_setup import captured_output
from appliance.core.service_links import REMEDY, service_links
from appliance.core.system import exit_now
from appliance.models.factory import ModelFactory
from appliance.models.manager import ModelManager
from appliance.server.app import create_app, create_probes, probe_settings
from appliance.server.kserve_prefixes import Fresh, Refresh
from appliance.server.listener import Listener
from appliance.server.probe_server import ProbeListener
from appliance.server.reload import ConfigReload, newest
from appliance.server.shutdown import shutdown_gracefully
from appliance.server.signals import Signals
from appliance.server.supervisor import Supervisor, worker_count
from appliance.server.tls import Certificates
from appliance.server.tls import read as read_certificate
from appliance.server.watchdog import Watchdog
from appliance.server.worker_health import WorkerInfo, read
from appliance.telemetry.recorder import RequestRecorder

if TYPE_CHECKING:
    import grpc

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# How long the process may take to end after its drain; models close in it, and connections.
_LEAVE_SECONDS = 15.0


def run(loaded: LoadedConfig) -> NoReturn:
    """Serve until a signal, then leave the process: 0 after a drain, else the exit code that says why not."""
    exit_now(serve(loaded))


def serve(loaded: LoadedConfig, factory: ModelFactory | None = None) -> int:
    """
    Serve until a signal, or until a model fails that is to end it: 0 after a drain, else the code that says why not.
    """
    if loaded.path is not None:
        # None is lost, and none ends us, before somebody listens.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    _configure_log(loaded)
    if ignored := [name for prefix in ("VLLM_", "APPLIANCE_") for name in service_links(os.environ, prefix)]:
        log.warning("environment.ignored", names=sorted(ignored), reason=REMEDY)
    try:
        return _run(loaded, factory)
    except ApplianceError as error:
        log.error("server.failed", reason=str(error))
        return error.exit_code


def _configure_log(loaded: LoadedConfig) -> None:
    logging_setup.configure(loaded.config.logging.format, loaded.config.logging.level, loaded.secrets)


def _run(loaded: LoadedConfig, factory: ModelFactory | None) -> int:
    server = loaded.config.server
    for key, port in (("port", server.port), ("probe_port", server.probe_port), ("grpc_port", server.grpc_port)):
        if port is not None:
            _require_free(server.host, port, f"server.{key}")
    if server.grpc_port is not None:
        oip_grpc.require()
    if server.tls is not None:
        # Before anybody can connect; each process reads them for itself.
        read_certificate(server.tls)
    work = partial(_work, loaded, factory)
    count = worker_count(loaded.config)
    if count == 1:
        return work(None)
    with _meeting_place(loaded.config) as folder:
        return Supervisor(count, work, lambda: _stop_seconds(newest(loaded).config), folder).run()


@contextmanager
def _meeting_place(config: Config) -> Iterator[Path | None]:
    """
    A directory for workers that share engines, which only we may enter: who can speak to an engine can do anything.
    """
    if not any(model_config.backend == "vllm" for model_config in config.models):
        yield None
        return
    # Where vLLM puts its own sockets; its variable is for those whose paths are too long for one.
    with TemporaryDirectory(prefix="appliance-", dir=os.environ.get("VLLM_RPC_BASE_PATH")) as folder:
        yield Path(folder)


def _stop_seconds(config: Config) -> float:
    return config.server.drain_delay_seconds + config.server.drain_seconds + _LEAVE_SECONDS


def _work(loaded: LoadedConfig, factory: ModelFactory | None, seat: WorkerInfo | None) -> int:
    if seat is not None and read(seat.slots, seat.number) is not None:
        # In the place of one that died, and of a parent that began with the file of then.
        loaded = newest(loaded)
        _configure_log(loaded)
    # Users' code runs from here on, and the log is to stay one stream.
    with captured_output():
        return asyncio.Runner(loop_factory=uvloop.new_event_loop).run(_serve(loaded, factory, seat))


async def _serve(loaded: LoadedConfig, factory: ModelFactory | None, seat: WorkerInfo | None) -> int:
    config = loaded.config
    app = create_app(config, seat, loaded.secrets, factory)
    manager: ModelManager = app.state.manager
    reloading = None if loaded.path is None else ConfigReload(loaded, manager, [app.state.apply])
    certificates = None if config.server.tls is None else Certificates(config.server.tls)
    servers = _listeners(app, config, certificates)
    grpc_server = await _grpc_server(app, config, seat, certificates)
    signals = Signals(None if reloading is None else reloading.ask, lambda: _stop_seconds(manager.config))
    watchdog = Watchdog(config.server.stall_seconds)
    serving = [asyncio.create_task(server.serve()) for server in servers]
    log.info(
        "server.started",
        host=config.server.host,
        port=config.server.port,
        probe_port=config.server.probe_port,
        grpc_port=config.server.grpc_port,
    )
    if reloading is not None:
        reloading.begin()
    failing = asyncio.create_task(manager.exit_signal.wait())
    ends: list[asyncio.Future[Any]] = [*serving, signals.first, failing]  # Any: each has a result of its own
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    ended = [task for task in serving if task.done()]
    for task in ended:
        log.error("server.failed", reason=str(task.exception() or "Granian ended by itself"))
    if reloading is not None:
        await reloading.close()
    await shutdown_gracefully(manager, servers, serving, grpc_server, is_expected=signals.is_termination)
    watchdog.close()
    signals.close()
    code = 1 if ended else failing.result() if failing.done() else 0
    failing.cancel()
    log.info("server.stopped", exit_code=code)
    return code


def _listeners(app: Litestar, config: Config, certificates: Certificates | None) -> Sequence[Listener | ProbeListener]:
    host, header_seconds = config.server.host, config.server.timeouts.header_seconds
    listener = Listener(app, host, config.server.port, certificates, header_seconds=header_seconds)
    port = config.server.probe_port
    if port is None:
        return [listener]
    outlook = Fresh(app.state.published, Refresh(asyncio.get_running_loop(), app.state.published.publish))
    telemetry = RequestRecorder(probe_settings(config))
    probes = create_probes(app.state.manager, outlook, telemetry)
    # Without TLS: a platform's probes have no certificate to show.
    return [listener, ProbeListener(Listener(probes, host, port, header_seconds=header_seconds))]


async def _grpc_server(
    app: Litestar, config: Config, seat: WorkerInfo | None, certificates: Certificates | None
) -> grpc.aio.Server | None:
    if config.server.grpc_port is None:
        return None
    # Not before a worker is a process of its own: gRPC's threads do not outlive a fork.
    from appliance.api.grpc.server import create_server

    standing = app.state.outlook.standing
    server, _ = create_server(
        config,
        app.state.manager,
        standing,
        app.state.telemetry,
        shares_port=seat is not None,
        certificates=certificates,
    )
    await server.start()
    return server


def _require_free(host: str, port: int, key: str) -> None:
    """Granian shares a port with whoever holds it already, and both would get half of the requests."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ApplianceError(
                f"cannot listen on {host} port {port}: {error.strerror}; choose another {key}"
            ) from error
