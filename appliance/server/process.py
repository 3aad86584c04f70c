"""The server process: checks before it starts, listeners in one event loop, and their shutdown."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import structlog
import uvloop
from litestar import Litestar

from appliance.api import grpc as oip_grpc
from appliance.auth.certificates import Certificates
from appliance.auth.certificates import read as read_certificate
from appliance.batches.store import BatchStore
from appliance.config import Config, LoadedConfig
from appliance.core import logging_setup
from appliance.core.errors import ApplianceError
from appliance.core.logging_setup import captured_output
from appliance.core.service_links import REMEDY, service_links
from appliance.core.stored_objects import exclusive
from appliance.core.system import settle_memory
from appliance.models.factory import ModelFactory
from appliance.models.manager import ModelManager
from appliance.responses.service import memory_folder
from appliance.responses.store import open_objects
from appliance.server.app import create_app, create_probe_app
from appliance.server.event_loop_watchdog import Watchdog
from appliance.server.listener import Listener, ThreadedListener
from appliance.server.reload import ConfigReload, latest
from appliance.server.shutdown import Signals, shutdown_gracefully
from appliance.server.supervisor import Supervisor, worker_count
from appliance.server.terminal import watch
from appliance.server.worker_health import WorkerInfo, read

if TYPE_CHECKING:
    import grpc

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# How long the process may take to exit after draining, while models and connections close.
_EXIT_SECONDS = 15.0

_HOST_REMEDY = "server.host must be an address of this machine, or 0.0.0.0 or :: for all of them"


def serve(loaded: LoadedConfig, factory: ModelFactory | None = None) -> int:
    """Serve until a signal, or until the failure of a model ends the process; return the exit code, 0 after a drain."""
    if loaded.path is not None:
        # Blocked until its handler is installed: a SIGHUP before that would end the process.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    _configure_log(loaded)
    if ignored := [name for prefix in ("VLLM_", "APPLIANCE_") for name in service_links(os.environ, prefix)]:
        log.warning("environment.ignored", names=sorted(ignored), reason=REMEDY)

    def serve_as(worker: WorkerInfo | None) -> int:
        is_replacement = worker is not None and read(worker.slots, worker.number) is not None
        current = latest(loaded) if is_replacement else loaded
        if is_replacement:
            _configure_log(current)
        # From here on code of users runs; what it prints becomes log events.
        with captured_output():
            runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
            return runner.run(_serve(current, factory, worker, is_replacement=is_replacement))

    try:
        _require_startable(loaded.config)
        count = worker_count(loaded.config)
        with _store_directories(loaded.config):
            if count == 1:
                return serve_as(None)
            with _rendezvous_folder(loaded.config) as name, memory_folder(loaded.config.responses) as memory:
                folder = None if name is None else Path(name)
                return Supervisor(count, serve_as, lambda: _stop_seconds(latest(loaded).config), folder, memory).run()
    except ApplianceError as error:
        log.error("server.failed", reason=str(error))
        return error.exit_code


async def _serve(
    loaded: LoadedConfig, factory: ModelFactory | None, worker: WorkerInfo | None, *, is_replacement: bool
) -> int:
    config = loaded.config
    app = create_app(config, worker, loaded.secrets, factory)
    manager: ModelManager = app.state.manager
    config_reload = None if loaded.path is None else ConfigReload(loaded, manager, app.state.apply)
    certificates = None if config.server.tls is None else Certificates(config.server.tls)
    start_grpc = partial(_start_grpc, app, config, certificates, shares_port=worker is not None)
    grpc_server = None if is_replacement else await start_grpc()

    async def take_over() -> None:
        nonlocal grpc_server
        await app.state.health.wait_until_loaded()
        grpc_server = await start_grpc()

    listeners = _listeners(app, config, certificates, take_over if is_replacement else None)
    signals = Signals(None if config_reload is None else config_reload.request, lambda: _stop_seconds(manager.config))
    watchdog = Watchdog(config.server.stall_seconds)
    # Without it, the collections under load take as long as tens of requests, because they visit every module.
    settle_memory()
    serving = [asyncio.create_task(listener.serve()) for listener in listeners]
    log.info("server.started", **config.server.model_dump(include={"host", "port", "probe_port", "grpc_port"}))
    if config_reload is not None:
        config_reload.start()
    is_first = worker is None or worker.number == 0
    terminal = asyncio.create_task(watch(manager)) if is_first else None
    exit_requested = asyncio.create_task(manager.exit_requested.wait())
    ends: list[asyncio.Future[Any]] = [*serving, signals.first, exit_requested]  # Any: each has a result of its own
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    ended = [task for task in serving if task.done()]
    for task in ended:
        log.error("server.failed", reason=str(task.exception() or "Granian ended by itself"))
    if config_reload is not None:
        await config_reload.close()
    await shutdown_gracefully(manager, listeners, serving, grpc_server, is_expected=signals.is_termination)
    watchdog.close()
    signals.close()
    code = 1 if ended else manager.exit_code or 0
    exit_requested.cancel()
    if terminal is not None:
        terminal.cancel()
        await asyncio.gather(terminal, return_exceptions=True)
    log.info("server.stopped", exit_code=code)
    return code


def _configure_log(loaded: LoadedConfig) -> None:
    logging_setup.configure(loaded.config.logging.format, loaded.config.logging.level, loaded.secrets)


def _require_startable(config: Config) -> None:
    server = config.server
    for key, port in (
        ("port or --port", server.port),
        ("probe_port", server.probe_port),
        ("grpc_port", server.grpc_port),
    ):
        if port is None:
            continue
        # Granian would share a port with another process that has it, and each would get half of the requests.
        with socket.socket(socket.AF_INET6 if ":" in server.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((server.host, port))
            except OSError as error:
                is_of_port = error.errno in (errno.EADDRINUSE, errno.EACCES)
                remedy = f"choose another server.{key}" if is_of_port else _HOST_REMEDY
                fault = f"cannot listen on {server.host} port {port}: {error.strerror}"
                raise ApplianceError(f"{fault}; {remedy}") from error
    if server.grpc_port is not None:
        oip_grpc.require()
    if server.tls is not None:
        # An error ends the start before a client can connect; each worker reads the files again.
        read_certificate(server.tls)


@contextmanager
def _store_directories(config: Config) -> Iterator[None]:
    """Create the directories of stores, and keep other servers out of them during the block."""
    with ExitStack() as stack:
        if config.responses is not None and config.responses.store == "file":
            # Each worker opens it again.
            open_objects(config.responses, None)
            stack.enter_context(exclusive(cast("Path", config.responses.directory), "responses.directory"))
        if config.batches is not None:
            BatchStore(config.batches).open()
            stack.enter_context(exclusive(config.batches.directory, "batches.directory"))
        yield


def _rendezvous_folder(config: Config) -> AbstractContextManager[str | None]:
    """Create a directory for workers that share engines; only this user may enter, because engines trust their clients.

    None if no model has an engine.
    """
    if not any(model.backend == "vllm" for model in config.models):
        return nullcontext()
    # vLLM puts its own sockets there; its variable is for those whose paths are too long for a socket.
    return TemporaryDirectory(prefix="appliance-", dir=os.environ.get("VLLM_RPC_BASE_PATH"))


def _stop_seconds(config: Config) -> float:
    return config.server.drain_delay_seconds + config.server.drain_seconds + _EXIT_SECONDS


def _listeners(
    app: Litestar,
    config: Config,
    certificates: Certificates | None,
    before_listening: Callable[[], Coroutine[Any, Any, None]] | None,  # Any: as `Coroutine` has them
) -> Sequence[Listener]:
    host, port, probe_port = config.server.host, config.server.port, config.server.probe_port
    header_seconds = config.server.timeouts.header_seconds
    listener = Listener(app, host, port, certificates, header_seconds=header_seconds, before_listening=before_listening)
    if probe_port is None:
        return [listener]
    probe_app = create_probe_app(app.state.manager, app.state.health, app.state.telemetry)
    # Without TLS: the probes of a platform have no client certificate.
    return [listener, ThreadedListener(probe_app, host, probe_port, header_seconds=header_seconds)]


async def _start_grpc(
    app: Litestar, config: Config, certificates: Certificates | None, *, shares_port: bool
) -> grpc.aio.Server | None:
    if config.server.grpc_port is None:
        return None
    # Imported in the worker process: the threads of gRPC do not survive a fork.
    from appliance.api.grpc.server import create_server

    state = app.state
    server, _ = create_server(
        config, state.manager, state.health.report, state.telemetry, shares_port=shares_port, certificates=certificates
    )
    await server.start()
    return server
