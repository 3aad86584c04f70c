"""Run a command as a child that never outlives the work it is for."""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TICK_SECONDS = 0.5
_KEPT_LINES = 200


@dataclass(frozen=True, slots=True)
class ChildResult:
    """How a child ended: its exit status, negative for a signal, and the last lines it wrote."""

    status: int
    lines: tuple[str, ...]


def run(command: Sequence[str], environment: Mapping[str, str], heard: Callable[[str], None]) -> ChildResult:
    """Run `command`, an absolute path and its arguments, with `environment` over our own, to its end.

    `heard` gets each line of output, and "" every half second without one; when it raises, the child and all of its
    children are killed.
    """
    # The kernel takes the thread that starts the child for its parent; this one stays to the child's end.
    tether = Path(__file__).with_name("pdeathsig_exec.py")
    process = subprocess.Popen(  # noqa: S603 - callers build the command from fixed words and checked names
        [sys.executable, "-I", "-S", str(tether), str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment},
        # A session of its own has no terminal to ask for a password, and is one group to kill.
        start_new_session=True,
    )
    kept: deque[str] = deque(maxlen=_KEPT_LINES)
    try:
        for line in _lines(process):
            heard(line)
            if line:
                kept.append(line)
        return ChildResult(_wait(process, heard), tuple(kept))
    finally:
        _end(process)


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    assert process.stdout is not None  # noqa: S101 - `run` opened it as a pipe
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(TICK_SECONDS):
                # A grandchild may hold the pipe open for ever, so its end is not the only end.
                if process.poll() is not None:
                    break
                yield ""
            elif block := os.read(process.stdout.fileno(), 1 << 16):
                *whole, rest = re.split(rb"[\r\n]+", rest + block)
                yield from (line.decode(errors="replace") for line in whole if line)
            else:
                break
    yield rest.decode(errors="replace")


def _wait(process: subprocess.Popen[bytes], heard: Callable[[str], None]) -> int:
    while True:
        try:
            return process.wait(TICK_SECONDS)
        except subprocess.TimeoutExpired:
            heard("")


def _end(process: subprocess.Popen[bytes]) -> None:
    # While it has not been waited for, its number cannot belong to another process.
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
