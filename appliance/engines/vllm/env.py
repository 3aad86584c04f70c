"""What vLLM hears only through the environment; what the user has set there stays."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import structlog

from appliance.config.layout import LayoutConfig
from appliance.core.errors import StorageError
from appliance.core.service_links import addresses as addresses_of_services
from appliance.core.system import processor_flags
from appliance.engines.vllm.parallel_args import Addresses, environment_of
from appliance.storage import Cache
from appliance.storage.private_directory import make_private

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_ALWAYS: Mapping[str, str] = {
    "VLLM_CONFIGURE_LOGGING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    # Everything is materialized before: nothing may be fetched behind our back.
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # The model's limits bound them, by names that clients and operators know.
    "VLLM_MAX_COMPLETION_PROMPTS": str(2**31 - 1),
    "VLLM_MAX_N_SEQUENCES": str(2**31 - 1),
    # Torch writes its log past everyone's, from Python and from C++.
    "TORCH_LOGS": "-all",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}

_COMPILED: Mapping[str, str] = {
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}
"""
Where vLLM, Torch's compiler and Triton keep what they compile, each in a directory of its own.
"""


def set_environment(layout: LayoutConfig, addresses: Addresses | None = None) -> None:
    """Tell vLLM what holds for every engine, and the layout of the next one; `addresses` are as in `Setup`."""
    # vLLM takes VLLM_PORT for a port, and other names that end so. The rest it does not read, and a config may.
    for name in addresses_of_services(os.environ, "VLLM_"):
        del os.environ[name]
    _suggest({**_ALWAYS, **environment_of(layout, addresses)})


def keep_compiled(cache_dir: Path | None) -> Path | None:
    """Have what is compiled for a model kept beside the models, so that a volume keeps both; returns where.

    `cache_dir` is the storage's, None its default, which is also taken where the other cannot be written.
    None where neither can be: vLLM, Torch and Triton then go by their own defaults.
    """
    for each in (cache_dir, None):
        root = _own(each)
        if root is not None:
            _suggest({variable: str(root / name) for variable, name in _COMPILED.items()})
            return root
    return None


def _own(cache_dir: Path | None) -> Path | None:
    """The directory for what is compiled, where nobody else can put anything: what lies there is run."""
    try:
        above = Cache.at(cache_dir).root
        above.mkdir(parents=True, exist_ok=True)
        # Where the links lead now is where it stays.
        kept = above.resolve() / ".compiled"
        root = kept / _processor()
        for each in (kept, root, *(root / name for name in _COMPILED.values())):
            make_private(each)
    except StorageError as error:
        log.warning("compiled.kept_elsewhere", reason=str(error))
        return None
    except OSError:
        return None
    return root if os.access(root, os.W_OK) else None


def _processor() -> str:
    """
    A name for this kind of processor: a volume may be shared by several, and code for one may be none for another.
    """
    words = " ".join((platform.machine(), *sorted(processor_flags())))
    return f"{platform.machine()}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"


def _suggest(settings: Mapping[str, str]) -> None:
    for name, value in settings.items():
        os.environ.setdefault(name, value)
