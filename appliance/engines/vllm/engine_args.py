"""Arguments for vLLM's engine and its front end, from the config of one model and its weight files."""

from __future__ import annotations

import contextlib
import math
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from appliance.config.engine import EngineConfig
from appliance.config.layout import LayoutConfig
from appliance.core.errors import LoadError
from appliance.core.system import usable_memory
from appliance.planner.memory import computes_in_float32, cpu_kv_cache_bytes
from appliance.storage import bounded_json

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs

# Puts the model into the engine core's process. By its path, because on the CPU vLLM overrides the short name "uni"
# with an executor that spins a whole core while it waits for its worker.
_UNIPROC_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"

_EXECUTORS = {"ray": "ray", "multiprocess": "mp"}

WORKER_EXTENSION = "appliance.engines.vllm.worker_extension.MemoryReport"
"""The class that extends vLLM's workers, unless the config names another one."""

# The ranks vLLM compiles its LoRA kernels for (vllm.config.lora.MaxLoRARanks).
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


# The format's own limit (https://huggingface.co/docs/safetensors, "Format").
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Pooler:
    """How a model's vectors become its output; None follows the model's own files.

    `task` is one of vLLM's; `pooling` is `cls`, `mean` or `last`; `dimensions` is for Matryoshka models.
    """

    task: str
    pooling: str | None = None
    normalize: bool | None = None
    dimensions: int | None = None


@dataclass(frozen=True, slots=True)
class NodeAddresses:
    """IP addresses by which the nodes of one model reach each other: this node's, and that of rank 0."""

    own: str
    leader: str


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """All that vLLM needs to know of one model."""

    name: str
    artifact: Path
    """A directory of safetensors, or of pickled weights if `allow_pickle` is true."""
    layout: LayoutConfig
    engine: EngineConfig
    chat_template: str | None = None
    """Jinja text or a file's path; None for the model's own."""
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    lora_adapters: Mapping[str, Path] = field(default_factory=dict)
    """Directories of LoRA adapters by name."""
    pooler: Pooler | None = None
    """None for a model that generates text."""
    allow_pickle: bool = False
    is_quantized: bool | None = None
    """Whether the checkpoint is quantized; None where nothing has inspected it yet."""
    addresses: NodeAddresses | None = None
    """Known once the nodes are connected; None for a model of one node."""


def engine_arguments(spec: EngineSpec, *, on_cpu: bool) -> dict[str, Any]:  # Any: vLLM's argument values
    """Return the arguments for vLLM's ``AsyncEngineArgs``: defaults for the machine, and the config over them.

    Raises LoadError if an adapter cannot be served, or the weights leave no memory for the KV cache.
    """
    engine = spec.engine
    uses_pickles = spec.allow_pickle and has_only_pickles(spec.artifact)
    arguments: dict[str, Any] = {
        "model": str(spec.artifact),
        "served_model_name": [spec.name],
        # Any other format may unpickle weights.
        "load_format": "hf" if uses_pickles else "safetensors",
        "trust_remote_code": engine.trust_remote_code,
        "dtype": engine.dtype,
        "reasoning_parser": spec.reasoning_parser or "",
        "use_tqdm_on_load": False,  # a progress bar is no line of a log
        "worker_extension_cls": WORKER_EXTENSION,
    }
    arguments |= layout_arguments(spec.layout, spec.addresses)
    arguments |= _cpu_arguments(spec) if on_cpu else {}
    arguments |= _lora_arguments(spec.lora_adapters) if spec.lora_adapters else {}
    arguments |= _pooler_arguments(spec.pooler) if spec.pooler else {}
    configured = {
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "quantization": engine.quantization,
        "stream_interval": engine.stream_interval,
        "kv_cache_memory_bytes": engine.kv_cache_memory_bytes or _layout_kv_cache_bytes(spec.layout, on_cpu=on_cpu),
        "enforce_eager": engine.enforce_eager,
    }
    arguments |= _without_none(configured)
    for name, value in engine.args.items():
        default = arguments.get(name)
        arguments[name] = {**default, **value} if isinstance(default, dict) and isinstance(value, dict) else value
    return arguments


def _without_none(arguments: Mapping[str, Any]) -> dict[str, Any]:  # Any: vLLM's argument values
    return {name: value for name, value in arguments.items() if value is not None}


def layout_arguments(layout: LayoutConfig, addresses: NodeAddresses | None = None) -> dict[str, Any]:
    """Return the layout as vLLM's arguments; what it leaves open is left to vLLM.

    The nodes' `addresses` replace the layout's own, which may be a name, on which vLLM cannot listen.
    """
    nodes = layout.nodes
    leader, port = addresses.leader if addresses else nodes.address, nodes.port + 1
    arguments: dict[str, Any] = {}
    if nodes.count > 1 and layout.keeps_copies_on_one_node:
        local = layout.data_parallel // nodes.count
        arguments = {
            "data_parallel_size_local": local,
            "data_parallel_address": leader,
            "data_parallel_rpc_port": port,
            # vLLM takes a node with a start rank for one without a front end.
            "data_parallel_start_rank": local * nodes.rank if layout.is_worker_node else None,
        }
    elif nodes.count > 1:
        # One copy of the model is spread over the nodes.
        arguments = {"nnodes": nodes.count, "node_rank": nodes.rank, "master_addr": leader, "master_port": port}
    configured = {
        "tensor_parallel_size": layout.tensor_parallel,
        "pipeline_parallel_size": layout.pipeline_parallel,
        "gpu_memory_utilization": layout.memory_fraction,
        "device_ids": list(layout.devices) if layout.devices else None,
        "cpu_offload_gb": layout.cpu_offload_gib or None,
        "distributed_executor_backend": _EXECUTORS.get(layout.executor),
        "enable_expert_parallel": layout.expert_parallel or None,
        "data_parallel_size_local": layout.data_parallel_local,
        "data_parallel_address": layout.data_parallel_address,
        "data_parallel_size": layout.data_parallel if layout.data_parallel > 1 else None,
        "decode_context_parallel_size": layout.decode_context_parallel if layout.decode_context_parallel > 1 else None,
    }
    return _without_none(arguments) | _without_none(configured)


def frontend_arguments(spec: EngineSpec, engine_args: AsyncEngineArgs) -> Namespace:
    """Return the namespace that vLLM's own server would hand to its serving classes."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.openai.models.protocol import LoRAModulePath
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arguments: Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    vars(arguments).update(vars(engine_args))
    vars(arguments).update(spec.engine.serving.model_dump(exclude={"clamp_max_tokens"}))
    arguments.chat_template = _template_text(spec.chat_template)
    arguments.tool_call_parser = spec.tool_call_parser
    arguments.enable_auto_tool_choice = spec.tool_call_parser is not None
    arguments.lora_modules = [LoRAModulePath(name=name, path=str(path)) for name, path in spec.lora_adapters.items()]
    return arguments


def _template_text(template: str | None) -> str | None:
    if template is None or "{" in template or "\n" in template:
        return template
    try:
        return Path(template).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(
            f"chat_template: cannot read the file {template!r} ({error}); give a readable file or the template itself"
        ) from error


def _cpu_arguments(spec: EngineSpec) -> dict[str, Any]:  # Any: vLLM's argument values
    dtype, stored_bytes, is_quantized = spec.engine.dtype, weight_bytes(spec.artifact), _is_quantized(spec)
    is_pooling = spec.pooler is not None
    if dtype == "auto" and computes_in_float32(stored_bytes, is_pooling=is_pooling, is_quantized=is_quantized):
        dtype = "float32"
    loaded_bytes = weight_bytes(spec.artifact, 4) if dtype == "float32" and not is_quantized else stored_bytes
    kv_cache_bytes = cpu_kv_cache_bytes(spec.layout, loaded_bytes)
    if kv_cache_bytes < 1 and spec.layout.memory_fraction is not None:
        total, _ = usable_memory()
        raise LoadError(
            f"layout.memory_fraction is {spec.layout.memory_fraction}: "
            f"{total * spec.layout.memory_fraction / 1024**3:.1f} GiB of this machine's {total / 1024**3:.1f}, and "
            f"the weights of {spec.name!r} alone take {loaded_bytes / 1024**3:.1f} GiB; raise the fraction"
        )
    arguments: dict[str, Any] = {
        # Compilation takes longer than it saves on the models a CPU serves.
        "enforce_eager": True,
        "dtype": dtype,
        # vLLM would take most of the machine's memory for the KV cache.
        "kv_cache_memory_bytes": kv_cache_bytes,
    }
    if spec.layout.is_single_rank:
        arguments["distributed_executor_backend"] = _UNIPROC_EXECUTOR
    return arguments


def _is_quantized(spec: EngineSpec) -> bool:
    if spec.engine.quantization is not None or spec.is_quantized is not None:
        return spec.engine.quantization is not None or bool(spec.is_quantized)
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        config = bounded_json.read(spec.artifact / "config.json")
        parts = (config, config.get("text_config") or {})
        return any(key in part for part in parts for key in ("quantization_config", "compression_config"))
    # vLLM says what is wrong with the file.
    return True


def _layout_kv_cache_bytes(layout: LayoutConfig, *, on_cpu: bool) -> int | None:
    """Return the size of the KV cache if the layout sets it."""
    if layout.kv_cache is None or layout.kv_cache.fraction is None:
        return layout.kv_cache.bytes if layout.kv_cache else None
    if on_cpu:
        return int(usable_memory()[0] * layout.kv_cache.fraction)
    from vllm.platforms import current_platform

    return int(current_platform.get_device_total_memory() * layout.kv_cache.fraction)


def _pooler_arguments(pooler: Pooler) -> dict[str, Any]:  # Any: vLLM's argument values
    config = {
        "task": pooler.task,
        "pooling_type": pooler.pooling.upper() if pooler.pooling else None,
        "use_activation": pooler.normalize,
        "dimensions": pooler.dimensions,
    }
    overrides = {"is_matryoshka": True} if pooler.dimensions else {}
    return {"runner": "pooling", "pooler_config": _without_none(config), "hf_overrides": overrides}


def _lora_arguments(adapters: Mapping[str, Path]) -> dict[str, Any]:  # Any: vLLM's argument values
    rank = 0
    for name, path in adapters.items():
        try:
            # PEFT's key of the rank.
            rank = max(rank, int(bounded_json.read(path / "adapter_config.json")["r"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LoadError(
                f"adapter {name!r}: {path} is not a LoRA adapter in PEFT's format: "
                "it needs an adapter_config.json with the rank 'r'"
            ) from error
    max_rank = next((size for size in _LORA_RANKS if size >= rank), None)
    if max_rank is None:
        raise LoadError(f"a LoRA adapter has rank {rank}; vLLM serves ranks up to {_LORA_RANKS[-1]}")
    return {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": max_rank}


def has_only_pickles(artifact: Path) -> bool:
    """Whether a directory has pickled weights and no safetensors."""
    return not any(artifact.glob("*.safetensors")) and any((*artifact.glob("*.bin"), *artifact.glob("*.pt")))


def weight_bytes(artifact: Path, element_bytes: int | None = None) -> int:
    """Return the bytes of a directory's safetensors, or of its pickles if it has nothing else.

    `element_bytes` is the size of each element once it is loaded; None counts the elements as they are stored.
    """
    if has_only_pickles(artifact):
        return sum(file.stat().st_size for pattern in ("*.bin", "*.pt") for file in artifact.glob(pattern))
    headers = [_read_header(file) for file in artifact.glob("*.safetensors")]
    return sum(each.tensor_bytes if element_bytes is None else each.elements * element_bytes for each in headers)


def require_weights(artifact: Path, *, allow_pickle: bool = False) -> None:
    """Raise LoadError unless `artifact` is a directory with whole safetensors, or with pickles that are allowed."""
    files = sorted(artifact.glob("*.safetensors")) if artifact.is_dir() else []
    if not files and not (allow_pickle and has_only_pickles(artifact)):
        reason = "has no .safetensors file" if artifact.is_dir() else "is a single file, not a model's directory"
        raise LoadError(
            f"{artifact} {reason}; give a directory of safetensors, or a .gguf file "
            "(pickled weights can run code when they are read, and need allow_pickle: true in the model's storage)"
        )
    for file in files:
        expected, actual = _read_header(file).file_bytes, file.stat().st_size
        if expected != actual:
            raise LoadError(
                f"{file} has {actual} bytes, but {expected} by its header; it is incomplete: download it again"
            )


class _Header(NamedTuple):
    """The sizes that the header of a safetensors file states."""

    file_bytes: int
    tensor_bytes: int
    elements: int


def _read_header(file: Path) -> _Header:
    try:
        with file.open("rb") as stream:
            # 8 bytes with the length of the JSON that follows; after it the tensors.
            length = int.from_bytes(stream.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header = bounded_json.parse(stream.read(length))
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        end = max((tensor["data_offsets"][1] for tensor in tensors), default=0)
        return _Header(8 + length + end, end, sum(math.prod(tensor["shape"]) for tensor in tensors))
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise LoadError(f"{file} is not a safetensors file ({error}); download it again") from error
