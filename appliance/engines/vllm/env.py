"""What the processes of an engine start with: environment variables, and on a CPU its threads and OpenMP library.

What the user has set stays.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from pathlib import Path

import psutil
import structlog

from appliance.config.layout import LayoutConfig
from appliance.core.disk import make_private
from appliance.core.errors import StorageError
from appliance.core.service_links import addresses as addresses_of_services
from appliance.core.system import processor_flags, usable_cores
from appliance.engines.vllm.engine_args import NodeAddresses
from appliance.storage import Cache

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_DEFAULTS: Mapping[str, str] = {
    "VLLM_CONFIGURE_LOGGING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    # All files are materialized before: nothing may be downloaded unseen.
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # The model's limits bound these, with messages that name our keys.
    "VLLM_MAX_COMPLETION_PROMPTS": str(2**31 - 1),
    "VLLM_MAX_N_SEQUENCES": str(2**31 - 1),
    # The default is 4, as at OpenAI; editors send a dozen for a completion inside a line.
    "VLLM_MAX_STOP_STRINGS": "64",
    # Torch logs past all handlers, from Python and from C++.
    "TORCH_LOGS": "-all",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}

# Where vLLM, Torch's compiler and Triton keep what they compile, each in a directory of its own.
_COMPILE_CACHES: Mapping[str, str] = {
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}

# Names of OpenMP libraries, of which a process can have one.
_OPENMP_LIBRARIES = ("libiomp", "libomp", "libgomp")

# How long threads spin before they sleep: Intel's for 0.2 milliseconds, GNU's not at all. Their defaults take the cores
# from our event loop and from other programs; without any spinning, Intel's lose a third of their speed.
_INTEL_WAITING = ("KMP_BLOCKTIME", "200us")
_GNU_WAITING = ("OMP_WAIT_POLICY", "PASSIVE")


def set_environment(layout: LayoutConfig, addresses: NodeAddresses | None = None) -> None:
    """Set the variables for all engines, and those for the layout of the next one; see `EngineSpec.addresses`."""
    # vLLM takes a Service's VLLM_PORT, and names that end so, for its own. It does not read the rest.
    for name in addresses_of_services(os.environ, "VLLM_"):
        del os.environ[name]
    _set_defaults({**_DEFAULTS, **layout_environment(layout, addresses)})


def layout_environment(layout: LayoutConfig, addresses: NodeAddresses | None = None) -> dict[str, str]:
    """Return what vLLM takes of a layout only through the environment, for processes that it starts itself."""
    if layout.is_single_rank:
        return {}
    variables = {}
    if layout.cpu_threads is not None:
        variables["OMP_NUM_THREADS"] = str(layout.cpu_threads)
    if layout.ranks > 1 or layout.cpu_threads is not None:
        # On a CPU each rank would take a NUMA node of its own, and all of its cores.
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    if layout.executor == "ray":
        # An existing cluster: Ray would silently start one of this machine alone. Ray keeps its workers' output.
        variables |= {"RAY_ADDRESS": "auto", "RAY_LOG_TO_DRIVER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    if addresses is not None:
        # With several networks, vLLM and gloo would guess which one leads to the other nodes.
        variables["VLLM_HOST_IP"] = addresses.own
        # None has the address if only a router in between knows it.
        for interface, found in psutil.net_if_addrs().items():
            if any(each.address.split("%")[0] == addresses.own for each in found):
                variables.setdefault("GLOO_SOCKET_IFNAME", interface)
    return variables


def set_compile_cache(cache_dir: Path | None) -> Path | None:
    """Keep what is compiled for a model beside the models, so that one volume keeps both; returns where.

    `cache_dir` is the storage's, None its default, which is also taken where `cache_dir` cannot be written.
    None where neither can be: vLLM, Torch and Triton then use their own defaults.
    """
    for each in (cache_dir, None):
        root = _private_cache(each)
        if root is not None:
            _set_defaults({variable: str(root / name) for variable, name in _COMPILE_CACHES.items()})
            return root
    return None


def _private_cache(cache_dir: Path | None) -> Path | None:
    """Return a directory that no other user can write to, because what is in it is executed."""
    # Kinds of processors that share a volume may not run each other's code.
    features = " ".join((platform.machine(), *sorted(processor_flags())))
    processor = f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
    try:
        models = Cache.at(cache_dir).root
        models.mkdir(parents=True, exist_ok=True)
        # Resolved now, so that a link cannot lead elsewhere later.
        compiled = models.resolve() / ".compiled"
        root = compiled / processor
        for directory in (compiled, root, *(root / name for name in _COMPILE_CACHES.values())):
            make_private(directory)
    except StorageError as error:
        log.warning("compile_cache.rejected", reason=str(error))
        return None
    except OSError:
        return None
    return root if os.access(root, os.W_OK) else None


def _set_defaults(variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        os.environ.setdefault(name, value)


@dataclass(frozen=True, slots=True)
class CpuProfile:
    """How the processes of an engine of one rank compute on a CPU."""

    threads: int
    environment: Mapping[str, str]
    """Variables that go over those of this process."""
    openmp: str
    """The library that runs the threads."""
    overridden_by: Sequence[str]
    """Config keys and variables that replaced our choice."""

    @classmethod
    def of(cls, layout: LayoutConfig) -> CpuProfile:
        threads = usable_cores()
        overridden_by: Sequence[str] = ()
        # Further elements of a list are for nested parallel regions.
        first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
        if layout.cpu_threads is not None:
            threads, overridden_by = layout.cpu_threads, ("layout.cpu_threads",)
        elif first.isdecimal() and int(first) > 0:
            threads, overridden_by = int(first), ("OMP_NUM_THREADS",)
        environment, openmp, settings = _openmp()
        return cls(threads, environment, openmp, (*overridden_by, *settings))


def is_cpu_build() -> bool:
    """Whether the installed vLLM computes on CPUs: vLLM's own rule, without the seconds of its import."""
    if os.environ.get("VLLM_TARGET_DEVICE") == "cpu":
        return True
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        return _distribution("vllm-cpu") is not None


def _openmp() -> tuple[Mapping[str, str], str, Sequence[str]]:
    """Return the variables for the OpenMP library, its name, and what set another choice."""
    preloaded = os.environ.get("LD_PRELOAD", "")
    chosen = next((name for name in _OPENMP_LIBRARIES if name in preloaded), None)
    if chosen is not None:
        return {}, chosen, ["LD_PRELOAD"]
    # Intel's, which vLLM's build for the CPU requires on x86; otherwise GNU's, which comes with Torch.
    found = _distribution("intel-openmp")
    files = [each for each in (found.files or ()) if each.name == "libiomp5.so"] if found else []
    library = next((path for each in files if (path := Path(str(each.locate())).resolve()).is_file()), None)
    preload = {} if library is None else {"LD_PRELOAD": ":".join(filter(None, (str(library), preloaded)))}
    name, (variable, value) = ("libgomp", _GNU_WAITING) if library is None else ("libiomp5", _INTEL_WAITING)
    if variable in os.environ:
        return preload, name, [variable]
    return {**preload, variable: value}, name, []


def _distribution(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None
