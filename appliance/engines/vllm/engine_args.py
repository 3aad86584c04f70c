"""What vLLM is told about one model: its engine arguments and its front end's, as typed values."""

from __future__ import annotations

import contextlib
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.config.engine import EngineConfig
from appliance.config.layout import LayoutConfig
from appliance.core.errors import LoadError
from appliance.core.system import usable_memory
from appliance.engines.vllm.parallel_args import Addresses, of_layout
from appliance.engines.vllm.weight_files import has_only_pickles, weight_bytes
from appliance.planner.cpu_defaults import computes_in_float32, cpu_kv_cache_bytes
from appliance.storage import bounded_json

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs

# Puts the model into the engine core process. By its path, because the short name "uni" is
# overruled on the CPU, where the default executor spins a whole core waiting for its worker.
_UNIPROC = "vllm.v1.executor.uniproc_executor.UniProcExecutor"

WORKER = "appliance.engines.vllm.worker_extension.MemoryReport"
"""
What vLLM's workers are extended by, unless the config extends them by something else.
"""

# The ranks vLLM compiles its LoRA kernels for (vllm.config.lora.MaxLoRARanks).
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True, slots=True)
class Pooler:
    """How a model's vectors become its answer; None is as the model's own files say.

    `task` is one of vLLM's; `pooling` is `cls`, `mean` or `last`; `dimensions` cuts embeddings that may be cut.
    """

    task: str
    pooling: str | None = None
    normalize: bool | None = None
    dimensions: int | None = None


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """All that vLLM needs to know of one model.

    `artifact` is a directory of safetensors, or of pickled weights where `allow_pickle` is true;
    `adapters` maps names to directories of LoRA adapters;
    `chat_template` is Jinja text or a file's path, None for the model's own; `pooler` is None for a model that writes;
    `addresses` are those of its machines, once they have met.
    """

    names: tuple[str, ...]
    artifact: Path
    layout: LayoutConfig
    engine: EngineConfig
    chat_template: str | None = None
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)
    pooler: Pooler | None = None
    allow_pickle: bool = False
    addresses: Addresses | None = None


def engine_arguments(setup: EngineSpec, *, on_cpu: bool) -> dict[str, Any]:  # Any: vLLM's argument values
    """Keyword arguments for vLLM's ``AsyncEngineArgs``: what the machine suggests, then what the config says."""
    engine = setup.engine
    arguments: dict[str, Any] = {
        "model": str(setup.artifact),
        "served_model_name": list(setup.names),
        "load_format": _load_format(setup),
        "trust_remote_code": engine.trust_remote_code,
        "dtype": engine.dtype,
        "reasoning_parser": setup.reasoning_parser or "",
        "use_tqdm_on_load": False,  # a progress bar is no line of a log
        "worker_extension_cls": WORKER,
    }
    arguments |= of_layout(setup.layout, setup.addresses)
    arguments |= _of_cpu(setup) if on_cpu else {}
    arguments |= _of_adapters(setup.adapters) if setup.adapters else {}
    arguments |= _of_pooler(setup.pooler) if setup.pooler else {}
    chosen = {
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "quantization": engine.quantization,
        "stream_interval": engine.stream_interval,
        "kv_cache_memory_bytes": engine.kv_cache_memory_bytes or _said_kv_bytes(setup.layout, on_cpu=on_cpu),
        "enforce_eager": engine.enforce_eager,
    }
    arguments |= {name: value for name, value in chosen.items() if value is not None}
    return arguments | {name: _over(arguments.get(name), value) for name, value in engine.args.items()}


def _over(ours: Any, value: Any) -> Any:  # Any: vLLM's argument values
    """A value from the config over ours: of two mappings, key by key."""
    return {**ours, **value} if isinstance(ours, dict) and isinstance(value, dict) else value


def frontend_arguments(setup: EngineSpec, engine_args: AsyncEngineArgs) -> Namespace:
    """The namespace vLLM's own server would hand to its serving classes."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.openai.models.protocol import LoRAModulePath
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arguments: Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    vars(arguments).update(vars(engine_args))
    arguments.chat_template = template_text(setup.chat_template)
    arguments.tool_call_parser = setup.tool_call_parser
    arguments.enable_auto_tool_choice = setup.tool_call_parser is not None
    arguments.lora_modules = [LoRAModulePath(name=name, path=str(path)) for name, path in setup.adapters.items()]
    return arguments


def template_text(template: str | None) -> str | None:
    """The Jinja text of a template given inline or as a file's path; None stays None.

    Raises:
        LoadError: it looks like a path, and there is no such file.
    """
    if template is None or "{" in template or "\n" in template:
        return template
    try:
        return Path(template).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(
            f"chat_template: cannot read the file {template!r} ({error}); give a readable file or the template itself"
        ) from error


def _load_format(setup: EngineSpec) -> str:
    """
    Safetensors, since any other weights may be pickles; those only where they are allowed and there is nothing else.
    """
    return "hf" if setup.allow_pickle and has_only_pickles(setup.artifact) else "safetensors"


def _of_cpu(setup: EngineSpec) -> dict[str, Any]:  # Any: vLLM's argument values
    dtype = _cpu_dtype(setup) if setup.engine.dtype == "auto" else setup.engine.dtype
    arguments: dict[str, Any] = {
        # Compilation takes longer than it saves on the models a CPU serves.
        "enforce_eager": True,
        "dtype": dtype,
        # Without it vLLM takes most of the machine's memory for the KV cache.
        "kv_cache_memory_bytes": _cpu_kv_cache_bytes(setup, is_float32=dtype == "float32"),
    }
    if setup.layout.is_alone:
        arguments["distributed_executor_backend"] = _UNIPROC
    return arguments


def _cpu_dtype(setup: EngineSpec) -> str:
    """The number format on a CPU where the config leaves it to us; "auto" is the checkpoint's own."""
    is_small = computes_in_float32(
        weight_bytes(setup.artifact), is_pooling=setup.pooler is not None, is_quantized=_is_quantized(setup)
    )
    return "float32" if is_small else "auto"


def _is_quantized(setup: EngineSpec) -> bool:
    if setup.engine.quantization is not None:
        return True
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        config = bounded_json.read(setup.artifact / "config.json")
        parts = (config, config.get("text_config") or {})
        return any(key in part for part in parts for key in ("quantization_config", "compression_config"))
    # vLLM says what is wrong with the file.
    return True


def _cpu_kv_cache_bytes(setup: EngineSpec, *, is_float32: bool) -> int:
    weights = weight_bytes(setup.artifact, 4 if is_float32 and not _is_quantized(setup) else None)
    left = cpu_kv_cache_bytes(setup.layout, weights)
    if left < 1 and setup.layout.memory_fraction is not None:
        total, _ = usable_memory()
        raise LoadError(
            f"layout.memory_fraction is {setup.layout.memory_fraction}: "
            f"{total * setup.layout.memory_fraction / 1024**3:.1f} GiB of this machine's {total / 1024**3:.1f}, and "
            f"the weights of {setup.names[0]!r} alone take {weights / 1024**3:.1f} GiB; raise the fraction"
        )
    return left


def _said_kv_bytes(layout: LayoutConfig, *, on_cpu: bool) -> int | None:
    """Memory of the KV cache where the layout says it outright."""
    if layout.kv_cache is None:
        return None
    if layout.kv_cache.fraction is None:
        return layout.kv_cache.bytes
    if on_cpu:
        return int(usable_memory()[0] * layout.kv_cache.fraction)
    from vllm.platforms import current_platform

    return int(current_platform.get_device_total_memory() * layout.kv_cache.fraction)


def _of_pooler(pooler: Pooler) -> dict[str, Any]:  # Any: vLLM's argument values
    config = {
        "task": pooler.task,
        "pooling_type": pooler.pooling.upper() if pooler.pooling else None,
        "use_activation": pooler.normalize,
        "dimensions": pooler.dimensions,
    }
    return {
        "runner": "pooling",
        "pooler_config": {name: value for name, value in config.items() if value is not None},
        "hf_overrides": {"is_matryoshka": True} if pooler.dimensions else {},
    }


def _of_adapters(adapters: Mapping[str, Path]) -> dict[str, Any]:  # Any: vLLM's argument values
    rank = max(_rank(name, path) for name, path in adapters.items())
    fitting = [size for size in _LORA_RANKS if size >= rank]
    if not fitting:
        raise LoadError(f"a LoRA adapter has rank {rank}; vLLM serves ranks up to {_LORA_RANKS[-1]}")
    return {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": fitting[0]}


def _rank(name: str, path: Path) -> int:
    """The adapter's rank, from the key ``r`` of PEFT's ``adapter_config.json``."""
    try:
        return int(bounded_json.read(path / "adapter_config.json")["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(
            f"adapter {name!r}: {path} is not a LoRA adapter in PEFT's format: "
            "it needs an adapter_config.json with the rank 'r'"
        ) from error
