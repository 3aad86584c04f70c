"""The devices of a plan: those of this machine, or devices given by name."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from appliance.core.suggestions import did_you_mean, known_names

_MIB = 2**20
_QUERY_SECONDS = 10

MEMORY_MIB: Mapping[str, int] = {
    "a10-24gb": 23028,
    "a10g-24gb": 23028,
    "a100-40gb": 40960,
    "a100-80gb": 81920,
    "a30-24gb": 24576,
    "a6000-48gb": 49140,
    "b200-180gb": 183359,
    "gh200-96gb": 97871,
    "h100-80gb": 81559,
    "h100-94gb": 95830,
    "h200-141gb": 143771,
    "h20-96gb": 97871,
    "l4-24gb": 23034,
    "l40s-48gb": 46068,
    "mi250-64gb": 65520,
    "mi300x-192gb": 196592,
    "mi325x-256gb": 262128,
    "rtx3090-24gb": 24576,
    "rtx4090-24gb": 24564,
    "rtx5090-32gb": 32607,
    "rtx6000ada-48gb": 49140,
    "rtxpro6000-96gb": 97887,
    "t4-16gb": 15360,
    "v100-16gb": 16384,
    "v100-32gb": 32768,
}
"""Memory of accelerators in MiB, as their drivers' tools show it (``nvidia-smi``, ``rocm-smi``)."""

_NAME = re.compile(r"(?P<name>[A-Za-z0-9]+-(?P<gb>\d+)gb)(?::(?P<count>[1-9]\d{0,3}))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Hardware:
    """Equal devices of one machine; on a CPU the machine is the only device, shared by all ranks."""

    name: str
    count: int
    memory_bytes: int
    is_cpu: bool = False
    is_here: bool = True

    def __str__(self) -> str:
        memory = f"{self.memory_bytes / 2**30:.1f} GiB"
        return f"CPU with {memory}" if self.is_cpu else f"{self.count} x {self.name} with {memory} each"


def named_hardware(text: str) -> Hardware:
    """Parse hardware such as `h100-80gb:8`; `any-NNgb` is a device that is not in `MEMORY_MIB`.

    Raises:
        ValueError: the name is not known.
    """
    found = _NAME.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"is {text!r}; must be NAME-GBgb:COUNT, such as h100-80gb:8")
    name, count = found["name"].lower(), int(found["count"] or 1)
    if name.startswith("any-"):
        return Hardware(name, count, int(found["gb"]) * 10**9, is_here=False)
    if name not in MEMORY_MIB:
        hint = did_you_mean(name, MEMORY_MIB) or known_names("ones", MEMORY_MIB)
        raise ValueError(f"is of an unknown kind, {name!r}; {hint}; any-{found['gb']}gb is any other")
    return Hardware(name, count, MEMORY_MIB[name] * _MIB, is_here=False)


def detect_hardware() -> Hardware:
    """Return the GPUs of this machine, or its CPU if there are none."""
    return _gpus() or Hardware("cpu", 1, int(psutil.virtual_memory().total), is_cpu=True)


def _gpus() -> Hardware | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        # A cold driver takes seconds; a GPU that has fallen off the bus never answers.
        output = subprocess.run(command, capture_output=True, text=True, timeout=_QUERY_SECONDS, check=True).stdout  # noqa: S603 - ours
        rows = [line.rpartition(",") for line in output.splitlines() if line.strip()]
        devices = [(name.strip(), int(memory)) for name, _, memory in rows]
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    if not devices:
        return None
    # If devices differ, the smallest decides, because ranks share the work evenly.
    name, memory = min(devices, key=lambda device: device[1])
    return Hardware(name, len(devices), memory * _MIB)
