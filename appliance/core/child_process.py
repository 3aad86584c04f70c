"""Child processes: they end with their parent, and stay within limits of CPU time and memory."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.core.pdeathsig_exec import PR_SET_PDEATHSIG

_POLL_SECONDS = 0.5
_KEPT_LINES = 200


@dataclass(frozen=True, slots=True)
class ChildResult:
    """How a child ended: its exit status, negative for a signal, and the last lines it wrote."""

    status: int
    lines: tuple[str, ...]


def run(command: Sequence[str], environment: Mapping[str, str], on_line: Callable[[str], None]) -> ChildResult:
    """Run `command`, an absolute path and its arguments, to its end; `environment` goes over our own.

    `on_line` gets each line of output, and "" every half second without one. If it raises, the child and all of its
    children are killed.
    """
    # The kernel's parent of a child is the thread that started it; this one waits for the child's end.
    launcher = Path(__file__).with_name("pdeathsig_exec.py")
    process = subprocess.Popen(  # noqa: S603 - callers build the command from fixed words and checked names
        [sys.executable, "-I", "-S", str(launcher), str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment},
        # A session of its own has no terminal to ask for a password, and is one group to kill.
        start_new_session=True,
    )
    last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
    try:
        for line in _lines(process):
            on_line(line)
            if line:
                last_lines.append(line)
        return ChildResult(process.wait(), tuple(last_lines))
    finally:
        # Until it is waited for, its id cannot belong to another process.
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def end_with_parent(parent_pid: int | None = None) -> None:
    """Have the kernel kill this process with the thread that started it; exit if `parent_pid` has ended already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent_pid is not None and os.getppid() != parent_pid:
        os._exit(1)


def limit_resources(*, memory_bytes: int, cpu_seconds: float | None = None) -> None:
    """Limit the address space of this process; after `cpu_seconds` of CPU time the kernel ends it with SIGPROF."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if cpu_seconds is not None:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """Yield the lines until the end of the process, and "" every half second without one."""
    assert process.stdout is not None  # noqa: S101 - `run` opened it as a pipe
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        # A grandchild may hold the pipe open for ever.
        while (is_readable := bool(selector.select(_POLL_SECONDS))) or process.poll() is None:
            if not is_readable:
                yield ""
            elif block := os.read(process.stdout.fileno(), 1 << 16):
                *complete, rest = re.split(rb"[\r\n]+", rest + block)
                yield from (line.decode(errors="replace") for line in complete if line)
            else:
                break
    yield rest.decode(errors="replace")
    while process.poll() is None:
        yield ""
        with suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_SECONDS)
