"""Signals, taken by a thread of their own: they end the process also when its event loop is blocked."""

from __future__ import annotations

import asyncio
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import structlog

from appliance.core.system import exit_now
from appliance.server.watchdog import frames_of

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_STOPS = frozenset({signal.SIGTERM, signal.SIGINT})


class Signals:
    """`first` is done with the first SIGTERM or SIGINT; the second one ends the process at once.

    A handler of Python's, and one of an event loop, waits for whatever the main thread does, which may be a user's code
    that never returns. The kernel's signal is written to a socket at once (`signal.set_wakeup_fd`), and a thread reads
    it there.
    """

    def __init__(self, reload: Callable[[], None] | None, stop_seconds: Callable[[], float]) -> None:
        """
        `reload` is called with each SIGHUP; None leaves that to end the process. `stop_seconds` is how long a graceful
        shutdown may take: the process ends after it, whatever keeps it.
        """
        self._loop = asyncio.get_running_loop()
        self.first: asyncio.Future[signal.Signals] = self._loop.create_future()
        self._reload = reload
        self._stop_seconds = stop_seconds
        self._deadline: float | None = None
        self._main = threading.get_ident()
        numbers = _STOPS if reload is None else _STOPS | {signal.SIGHUP}
        self._before: dict[int, Any] = {}  # Any: what Python has for a handler
        self._inbox, self._outbox = socket.socketpair()
        self._outbox.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._outbox.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            self._before[number] = signal.signal(number, _take_note)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        # A worker is born with them blocked, so that none is lost before somebody listens.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*_STOPS, signal.SIGHUP, signal.SIGCHLD})

    @property
    def is_termination(self) -> bool:
        """A platform ends us, which has told others so, and not somebody at a terminal."""
        return self.first.done() and self.first.result() is signal.SIGTERM

    def close(self) -> None:
        """Leave signals to what comes after."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._outbox.close()
        self._thread.join()
        self._inbox.close()

    def _listen(self) -> None:
        while True:
            left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            if not select.select([self._inbox], [], [], left)[0]:
                self._give_up()
            received = self._inbox.recv(64)
            if not received:
                return
            for number in received:
                # Others may have a handler, a model's own code among them.
                if number in self._before:
                    self._receive(signal.Signals(number))

    def _receive(self, number: signal.Signals) -> None:
        log.info("signal.received", signal=number.name)
        if number not in _STOPS:
            if self._reload is not None:
                self._loop.call_soon_threadsafe(self._reload)
        else:
            if self._deadline is not None:
                exit_now(128 + number)
            self._deadline = time.monotonic() + self._stop_seconds()
            self._loop.call_soon_threadsafe(self.first.set_result, number)

    def _give_up(self) -> None:
        log.error(
            "server.failed",
            reason=f"it did not stop within {self._stop_seconds():g} seconds of the signal",
            frames=frames_of(self._main),
        )
        exit_now(1)


def _take_note(_number: int, _frame: FrameType | None) -> None:
    """Nothing: the signal is in the socket already, and only a signal with a handler is written there."""
