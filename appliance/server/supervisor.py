"""Several worker processes on one port: started, watched, replaced when one dies, and drained together."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import structlog

from appliance.config import Config
from appliance.core.child_process import end_with_parent
from appliance.core.errors import ApplianceError
from appliance.core.system import exit_now, usable_cores
from appliance.server.shared_memory import SharedSlots
from appliance.server.worker_health import WorkerInfo, mark_dead, read

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_STOPS = frozenset({signal.SIGTERM, signal.SIGINT})
_SIGNALS = _STOPS | {signal.SIGHUP, signal.SIGCHLD}

# A worker that dies now and then is replaced; one that dies over and over is a fault nobody would see otherwise.
_MOST_DEATHS = 5
_DEATH_SECONDS = 60.0


def worker_count(config: Config) -> int:
    """How many processes serve this config: `auto` is one where a model computes here, else one for each core."""
    if config.server.workers != "auto":
        return config.server.workers
    return 1 if any(model_config.has_engine for model_config in config.models) else usable_cores()


class Supervisor:
    """The parent of the workers: it answers nobody, has one thread, and so can fork at any moment.

    A worker that dies takes its own calls with it; those of the others go on, and another takes its place. Where they
    share engines none can: each engine has met its front ends once and for all, so the death of one is the end.
    """

    def __init__(
        self,
        count: int,
        work: Callable[[WorkerInfo], int],
        stop_seconds: Callable[[], float],
        folder: Path | None = None,
    ) -> None:
        """`folder` is where they meet that share engines, None where there are none."""
        self._slots = SharedSlots(count)
        self._work = work
        self._stop_seconds = stop_seconds
        self._folder = folder
        self._numbers: dict[int, int] = {}
        self._deaths: deque[float] = deque(maxlen=_MOST_DEATHS)
        self._deadline: float | None = None
        self._code = 0

    def run(self) -> int:
        """Serve until a signal or until it makes no sense any more; the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        log.info("workers.started", workers=self._slots.count)
        # What is here now is never touched again, so that its pages stay shared.
        gc.collect()
        gc.freeze()
        for number in range(self._slots.count):
            self._start(number)
        while self._numbers:
            self._wait()
            for pid, code in _ended():
                # As the first process of a container we also inherit strangers.
                if pid in self._numbers:
                    self._bury(pid, self._numbers.pop(pid), code)
        return self._code

    def _start(self, number: int) -> None:
        # What is buffered would be written twice.
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become_worker(parent, self._work, WorkerInfo(number, self._slots, self._folder))
        self._numbers[pid] = number

    def _wait(self) -> None:
        """Until a worker ended or a signal came, which is passed on; those that do not end in time are killed."""
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
        elif number in _STOPS:
            log.info("signal.received", signal=number.name)
            # The second one ends every worker at once.
            self._code = 0 if self._deadline is None else 128 + number
            self._stop(number)

    def _stop(self, number: signal.Signals) -> None:
        self._deadline = self._deadline or time.monotonic() + self._stop_seconds()
        self._send(number)

    def _send(self, number: signal.Signals) -> None:
        for pid in self._numbers:
            os.kill(pid, number)

    def _bury(self, pid: int, number: int, code: int) -> None:
        if self._deadline is not None:
            self._code = self._code or min(abs(code), 1)
            return
        reason = f"signal {-code}" if code < 0 else f"exit code {code}"
        log.error("worker.died", worker=number, pid=pid, reason=reason)
        self._deaths.append(time.monotonic())
        why = self._why_all_end(pid, number)
        mark_dead(self._slots, number)
        if why is None:
            self._start(number)
            return
        log.error("server.failed", reason=f"worker {number} ended with {reason}: {why}")
        self._code = code if code > 0 else 1
        self._stop(signal.SIGTERM)

    def _why_all_end(self, pid: int, number: int) -> str | None:
        """What keeps another worker from taking the place of one that died; None where nothing does."""
        last = read(self._slots, number)
        if last is None or last.pid != pid:
            return "it could not start"
        if self._folder is not None:
            return "the engine it shared with the others takes nobody in its place"
        return "it dies over and over" if self._die_too_often() else None

    def _die_too_often(self) -> bool:
        return len(self._deaths) == _MOST_DEATHS and self._deaths[-1] - self._deaths[0] < _DEATH_SECONDS


def _ended() -> Iterator[tuple[int, int]]:
    """Each child that has ended, and its exit code, negative where a signal ended it."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended[0], os.waitstatus_to_exitcode(ended[1])


def _become_worker(parent: int, work: Callable[[WorkerInfo], int], seat: WorkerInfo) -> NoReturn:
    code = 1
    try:
        # Out of the terminal's process group: Ctrl-C goes to the parent alone, which passes it on once.
        os.setpgid(0, 0)
        end_with_parent(parent)
        structlog.contextvars.bind_contextvars(worker=seat.number)
        code = work(seat)
    except ApplianceError as error:
        log.error("server.failed", reason=str(error))
        code = error.exit_code
    except BaseException:
        log.exception("worker.broke")
    finally:
        exit_now(code)
