"""What the start of an engine needs and no byte of the model changes, begun while the bytes are still on their way."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import threading
from pathlib import Path

from appliance.config.layout import AnyLayout, LayoutConfig
from appliance.core.errors import MissingExtraError
from appliance.engines.vllm.cpu_profile import CpuProfile, is_cpu_build
from appliance.engines.vllm.env import keep_compiled, set_environment
from appliance.engines.vllm.fork_server import ForkServer
from appliance.engines.vllm.startup_timings import StartupTimings

_IMPORTING = threading.Lock()


def begin(name: str, layout: AnyLayout, cache_dir: Path | None, *, forks: bool = True) -> None:
    """Begin the groundwork for the model `name`; returns at once, and does nothing the second time.

    What is compiled is kept below `cache_dir`; None is the storage's default. `forks` is that this process starts the
    engine core. Call it in the main thread.

    Raises:
        MissingExtraError: vLLM is not installed.
    """
    require_vllm(name)
    keep_compiled(cache_dir)
    # A CPU is one device, whatever there is to choose from.
    known = layout if isinstance(layout, LayoutConfig) else LayoutConfig() if is_cpu_build() else None
    if known is not None:
        set_environment(known)
    if known is not None and forks:
        fork_server(known, StartupTimings())
    threading.Thread(target=_import_early, name="groundwork", daemon=True).start()


def require_vllm(name: str) -> None:
    """Return when vLLM is installed.

    Raises:
        MissingExtraError: it is not.
    """
    if importlib.util.find_spec("vllm") is None:
        extra = "gpu" if shutil.which("nvidia-smi") else "cpu"
        raise MissingExtraError("vllm", extra, f"the model {name!r}")


def fork_server(layout: LayoutConfig, parts: StartupTimings) -> ForkServer | None:
    """
    What the engine core is forked from, begun at once; None where vLLM starts its processes itself: on several devices.

    `parts` are told of what the engine core's start is spent on.
    """
    if not layout.is_alone:
        return None
    if not is_cpu_build():
        return ForkServer(parts)
    profile = CpuProfile.of(layout)
    return ForkServer(parts, profile.environment, profile.threads)


def import_vllm() -> None:
    """Import what would otherwise be imported in the event loop, and block it for seconds.

    One thread at a time: two that import modules which import each other wait for one another.
    """
    with _IMPORTING:
        import vllm.entrypoints.generate.api_router
        import vllm.entrypoints.launchers.api_server.app_state
        import vllm.entrypoints.pooling.factories
        import vllm.entrypoints.scale_out.factories
        import vllm.v1.engine.async_llm  # noqa: F401 - wanted for its time, not for its names


def _import_early() -> None:
    # Whoever needs it imports again, and hears what is wrong.
    with contextlib.suppress(Exception):
        import_vllm()
