"""Several worker processes on one port: started, watched, replaced when one dies, and drained together."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import structlog

from appliance.config import Config
from appliance.core.child_process import end_with_parent
from appliance.core.errors import ApplianceError
from appliance.core.shared_traffic import SharedTraffic
from appliance.core.system import exit_now, usable_cores
from appliance.server.shared_memory import SharedSlots
from appliance.server.shutdown import STOP_SIGNALS
from appliance.server.worker_health import WorkerInfo, mark_dead, read

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_SIGNALS = STOP_SIGNALS | {signal.SIGHUP, signal.SIGCHLD}

# A worker that dies now and then is replaced; repeated deaths end the server, so that the fault is noticed.
_MAX_DEATHS = 5
_DEATH_SECONDS = 60.0


def worker_count(config: Config) -> int:
    """Return the number of workers for this config: `auto` is one if a model has an engine, else one for each core."""
    if config.server.workers != "auto":
        return config.server.workers
    return 1 if any(model_config.has_engine for model_config in config.models) else usable_cores()


class Supervisor:
    """The parent of the workers; it serves no requests and has one thread, so that it can fork at any time.

    A worker that dies loses its own requests only, and is replaced. If the workers share engines, it cannot be
    replaced, because an engine accepts its front ends only when it starts; then the death of one ends the server.
    """

    def __init__(
        self,
        count: int,
        work: Callable[[WorkerInfo], int],
        stop_seconds: Callable[[], float],
        folder: Path | None = None,
        memory_folder: Path | None = None,
    ) -> None:
        """`folder` and `memory_folder` are those of `WorkerInfo`."""
        self._slots, self._traffic = SharedSlots(count), SharedTraffic(count)
        self._work = work
        self._stop_seconds = stop_seconds
        self._folder, self._memory_folder = folder, memory_folder
        self._numbers: dict[int, int] = {}
        self._deaths: deque[float] = deque(maxlen=_MAX_DEATHS)
        self._deadline: float | None = None
        self._code = 0

    def run(self) -> int:
        """Run the workers until a signal, or until they cannot go on; return the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        log.info("workers.started", workers=self._slots.count)
        # Objects that exist now are never collected, so that their pages stay shared.
        gc.collect()
        gc.freeze()
        for each in range(self._slots.count):
            self._start(each)
        while self._numbers:
            self._wait()
            with contextlib.suppress(ChildProcessError):
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    # The first process of a container also inherits orphans.
                    if (number := self._numbers.pop(ended[0], None)) is not None:
                        self._handle_death(ended[0], number, os.waitstatus_to_exitcode(ended[1]))
        return self._code

    def _start(self, number: int) -> None:
        # Buffered output would be written twice.
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            worker = WorkerInfo(number, self._slots, self._traffic, self._folder, self._memory_folder)
            _become_worker(parent, self._work, worker)
        self._numbers[pid] = number

    def _wait(self) -> None:
        """Wait for the end of a worker, or a signal, which is passed on; workers that do not end in time are killed."""
        if self._deadline is None:
            number = signal.Signals(signal.sigwait(_SIGNALS))
        else:
            received = signal.sigtimedwait(_SIGNALS, max(0.0, self._deadline - time.monotonic()))
            number = signal.Signals(received.si_signo if received else signal.SIGKILL)
        if number is signal.SIGKILL:
            self._send(number)
            signal.sigwait({signal.SIGCHLD})
        elif number is signal.SIGHUP:
            log.info("signal.received", signal=number.name)
            self._send(number)
        elif number in STOP_SIGNALS:
            log.info("signal.received", signal=number.name)
            # The second signal ends every worker at once.
            self._code = 0 if self._deadline is None else 128 + number
            self._stop(number)

    def _stop(self, number: signal.Signals) -> None:
        self._deadline = self._deadline or time.monotonic() + self._stop_seconds()
        self._send(number)

    def _send(self, number: signal.Signals) -> None:
        for pid in self._numbers:
            os.kill(pid, number)

    def _handle_death(self, pid: int, number: int, code: int) -> None:
        if self._deadline is not None:
            self._code = self._code or min(abs(code), 1)
            return
        reason = f"signal {-code}" if code < 0 else f"exit code {code}"
        log.error("worker.died", worker=number, pid=pid, reason=reason)
        self._deaths.append(time.monotonic())
        reason_not_replaced = self._irreplaceable(pid, number)
        mark_dead(self._slots, number)
        self._traffic.clear(number)
        if reason_not_replaced is None:
            self._start(number)
            return
        log.error("server.failed", reason=f"worker {number} ended with {reason}: {reason_not_replaced}")
        self._code = code if code > 0 else 1
        self._stop(signal.SIGTERM)

    def _irreplaceable(self, pid: int, number: int) -> str | None:
        """Return why a worker that died cannot be replaced; None if it can."""
        last = read(self._slots, number)
        if last is None or last.pid != pid:
            return "it could not start"
        if self._folder is not None:
            return "the engine that the workers share accepts no replacement"
        is_often = len(self._deaths) == _MAX_DEATHS and self._deaths[-1] - self._deaths[0] < _DEATH_SECONDS
        return "workers die too often" if is_often else None


def _become_worker(parent: int, work: Callable[[WorkerInfo], int], worker: WorkerInfo) -> NoReturn:
    code = 1
    try:
        # Out of the process group of the terminal: Ctrl-C goes to the parent only, which passes it on once.
        os.setpgid(0, 0)
        end_with_parent(parent)
        structlog.contextvars.bind_contextvars(worker=worker.number)
        code = work(worker)
    except ApplianceError as error:
        log.error("server.failed", reason=str(error))
        code = error.exit_code
    except BaseException:
        log.exception("worker.crashed")
    finally:
        exit_now(code)
