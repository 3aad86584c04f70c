"""What this process may use of the machine: cores, memory, processor features, within a container's limits."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import psutil

_CGROUP = Path("/sys/fs/cgroup")

# New objects before a garbage collection: more than a thousand streams create and drop in one step of an engine. With
# Python's own 700 there are several collections in each step.
_GC_THRESHOLD = 10_000

_CPU_INFO = Path("/proc/cpuinfo")


def exit_now(code: int) -> NoReturn:
    """End this process and all its children at once; a return would wait for threads that cannot be cancelled."""
    kill(psutil.Process().children(recursive=True))
    for stream in (sys.stdout, sys.stderr):
        # A full disk, or a reader that has left.
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill processes, some of which may have ended meanwhile."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def memory_bytes() -> int:
    """Return the resident memory of this process."""
    size: int = psutil.Process().memory_info().rss
    return size


def settle_memory() -> None:
    """Exclude what a start created from garbage collections, because nearly all of it stays; return the rest."""
    gc.collect()
    return_free_memory()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, *gc.get_threshold()[1:])


def return_free_memory() -> None:
    """Return the memory that the C library keeps for later allocations, where it can (glibc's `malloc_trim`)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """Return the cores this process may use: its affinity, and the container's limit, rounded up.

    Sources: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files, and for version 1
    https://docs.kernel.org/scheduler/sched-bwc.html.
    """
    cores = len(os.sched_getaffinity(0))
    v2, *v1 = (cgroup / name for name in ("cpu.max", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
    # No such files, or the word "max".
    with contextlib.suppress(OSError, ValueError):
        quota, period = map(int, v2.read_text().split() if v2.exists() else [file.read_text() for file in v1])
        if quota > 0:
            cores = max(1, min(cores, math.ceil(quota / period)))
    return cores


def processor_flags(file: Path = _CPU_INFO) -> frozenset[str]:
    """Return the kernel's names of the first processor's features, such as `avx512_bf16`; empty if unknown."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return frozenset()
    # x86 has flags, ARM has Features.
    flags = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(flags, "").split())


def usable_memory(cgroup: Path = _CGROUP) -> tuple[int, int]:
    """Return the bytes that this process may have in all, and those that are free, within the container's limit.

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
