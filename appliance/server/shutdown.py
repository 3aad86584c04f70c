"""The end of the process: signals, and graceful shutdown."""

from __future__ import annotations

import asyncio
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import structlog

from appliance.core.system import exit_now
from appliance.models.manager import ModelManager
from appliance.server.event_loop_watchdog import frames_of
from appliance.server.listener import Listener

if TYPE_CHECKING:
    import grpc

log: structlog.stdlib.BoundLogger = structlog.get_logger()

STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})

# A request that is sent while its connection is being closed arrives within this time, and is answered.
_LATE_REQUEST_SECONDS = 1.0

# How long connections may take to close after that.
_CLOSE_SECONDS = 5.0


class Signals:
    """`first` is done with the first SIGTERM or SIGINT; the second one ends the process at once.

    Handlers of Python and of the event loop wait for the main thread, which may run code of a user that never
    returns. `signal.set_wakeup_fd` writes each signal to a socket at once, and a thread reads it there.
    """

    def __init__(self, reload: Callable[[], None] | None, stop_seconds: Callable[[], float]) -> None:
        """`reload` is called for each SIGHUP; if None, SIGHUP ends the process.

        `stop_seconds` returns how long a graceful shutdown may take, after which the process ends anyway.
        """
        self._loop = asyncio.get_running_loop()
        self.first: asyncio.Future[signal.Signals] = self._loop.create_future()
        self._reload = reload
        self._stop_seconds = stop_seconds
        self._deadline: float | None = None
        self._main = threading.get_ident()
        numbers = STOP_SIGNALS if reload is None else STOP_SIGNALS | {signal.SIGHUP}
        self._inbox, self._outbox = socket.socketpair()
        self._outbox.setblocking(False)
        self._previous_wakeup_fd = signal.set_wakeup_fd(self._outbox.fileno(), warn_on_full_buffer=False)
        # Only signals with a handler are written to the socket.
        self._previous = {number: signal.signal(number, lambda *_: None) for number in numbers}
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        # Workers start with them blocked, so that none is lost before this thread reads them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOP_SIGNALS, signal.SIGHUP, signal.SIGCHLD})

    @property
    def is_termination(self) -> bool:
        """Whether a platform, which has told load balancers, ends the process, and not a user at a terminal."""
        return self.first.done() and self.first.result() is signal.SIGTERM

    def close(self) -> None:
        """Restore the handlers of before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_wakeup_fd)
        self._outbox.close()
        self._thread.join()
        self._inbox.close()

    def _listen(self) -> None:
        while True:
            left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            if not select.select([self._inbox], [], [], left)[0]:
                reason = f"it did not stop within {self._stop_seconds():g} seconds of the signal"
                log.error("server.failed", reason=reason, frames=frames_of(self._main)[0])
                exit_now(1)
            received = self._inbox.recv(64)
            if not received:
                return
            for number in received:
                # Other signals may have a handler of a model.
                if number in self._previous:
                    self._receive(signal.Signals(number))

    def _receive(self, number: signal.Signals) -> None:
        log.info("signal.received", signal=number.name)
        if number not in STOP_SIGNALS:
            if self._reload is not None:
                self._loop.call_soon_threadsafe(self._reload)
        else:
            if self._deadline is not None:
                exit_now(128 + number)
            self._deadline = time.monotonic() + self._stop_seconds()
            self._loop.call_soon_threadsafe(self.first.set_result, number)


async def shutdown_gracefully(
    manager: ModelManager,
    listeners: Sequence[Listener],
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
    # No load balancer sends requests to a server that never was ready.
    was_ready = any(status.was_ready for status in manager.statuses)
    delay = settings.drain_delay_seconds if is_expected and was_ready else 0
    closing: list[asyncio.Future[None]] = list(serving)

    def stop_grpc(seconds: float) -> None:
        if grpc_server is not None:
            closing.append(asyncio.ensure_future(grpc_server.stop(seconds)))

    def dismiss() -> None:
        for listener in listeners:
            listener.dismiss()
        # gRPC has no other way to tell its clients.
        stop_grpc(settings.drain_seconds)

    requests = sum(status.running + status.queued for status in manager.statuses)
    log.info("server.draining", delay_seconds=delay, seconds=settings.drain_seconds, requests=requests)
    await manager.drain(settings.drain_seconds, delay, dismiss)
    for listener in listeners:
        listener.stop()
    stop_grpc(_CLOSE_SECONDS)
    await asyncio.wait(closing, timeout=_LATE_REQUEST_SECONDS)
    await manager.stop()
    # Bounded: Granian waits for every connection, and a client may never read its response.
    await asyncio.wait(closing, timeout=_CLOSE_SECONDS)
