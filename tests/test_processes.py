"""What a process knows of its machine, and how it ends its children."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from appliance.core.system import kill, processor_flags, usable_cores, usable_memory

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, CORES),
        ({"cpu.max": "max 100000\n"}, CORES),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "100000000 100000\n"}, CORES),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, CORES),
        ({"cpu/cpu.cfs_quota_us": "20000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu.max": "nonsense"}, CORES),
    ],
)
def test_cores_are_those_a_container_may_use(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    """A container on a large machine with a small limit has few; no limit is all there are."""
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"memory.max": "max\n"}, None),
        ({"memory.max": "1048576\n"}, 1 << 20),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({"memory/memory.limit_in_bytes": "1048576\n"}, 1 << 20),
    ],
)
def test_the_usable_memory_is_no_more_than_the_limit(tmp_path: Path, files: dict[str, str], limit: int | None) -> None:
    """A container's share of a large machine; no limit is all there is."""
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    total, available = usable_memory(tmp_path)

    assert total == (limit or psutil.virtual_memory().total)
    assert 0 < available <= total


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: fpu\n", {"fpu", "avx2"}),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", {"fp", "asimd", "bf16"}),
        ("processor\t: 0\n", set()),
        (None, set()),
    ],
    ids=["x86", "arm", "silent", "no file"],
)
def test_a_processor_says_what_it_can_do(tmp_path: Path, text: str | None, flags: set[str]) -> None:
    """By the first of its kind; where the kernel does not say, nothing is known."""
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text)

    assert processor_flags(file) == flags


def test_a_child_that_has_ended_does_not_keep_the_others_alive() -> None:
    """Each may end between the look for them and the kill."""
    children = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    processes = [psutil.Process(child.pid) for child in children]
    children[0].kill()
    children[0].wait()

    kill(processes)

    assert children[1].wait(10) == -signal.SIGKILL
