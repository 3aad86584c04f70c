"""What a process of ours does about its parent and its machine."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import psutil

# linux/prctl.h
_PR_SET_PDEATHSIG = 1

_CGROUP = Path("/sys/fs/cgroup")

_PROCESSOR = Path("/proc/cpuinfo")


def die_with_parent() -> None:
    """Have the kernel end this process when the thread that made it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def leave(code: int) -> NoReturn:
    """End this process and all its children now.

    Not by returning: a thread that imports or waits for an engine cannot be cancelled, and would be waited for.
    """
    for child in psutil.Process().children(recursive=True):
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """Cores this process may use: those it may run on, and no more than a container's limit, rounded up."""
    may_run_on = len(os.sched_getaffinity(0))
    limit = _limit(cgroup)
    return may_run_on if limit is None else max(1, min(may_run_on, math.ceil(limit)))


def processor_flags(file: Path = _PROCESSOR) -> frozenset[str]:
    """What the first processor can do, in the kernel's words, such as `avx512_bf16`; empty where it does not say."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return frozenset()
    # x86 has flags, ARM has Features.
    said = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(said, "").split())


def usable_memory(cgroup: Path = _CGROUP) -> tuple[int, int]:
    """Bytes that this process may have in all, and those of them that are free: no more than a container's limit.

    Sources: https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files, and for version 1
    https://docs.kernel.org/admin-guide/cgroup-v1/memory.html.
    """
    memory = psutil.virtual_memory()
    total = memory.total
    for file in (cgroup / "memory.max", cgroup / "memory/memory.limit_in_bytes"):
        # No such file, or the word "max".
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(file.read_text()))
    return total, min(total, memory.available)


def _limit(cgroup: Path) -> float | None:
    """A container's limit in cores, None where there is none.

    Sources: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files, and for version 1
    https://docs.kernel.org/scheduler/sched-bwc.html.
    """
    both, *apart = (cgroup / name for name in ("cpu.max", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
    try:
        words = both.read_text().split() if both.exists() else [file.read_text() for file in apart]
        quota, period = int(words[0]), int(words[1])
    except (OSError, ValueError):
        # No such files, or the word "max".
        return None
    return quota / period if quota > 0 else None
