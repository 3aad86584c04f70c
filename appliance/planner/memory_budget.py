"""How the memory of a device is divided: budget, activations and KV cache.

vLLM measures the activations of a full batch and the memory of libraries when it starts; here they are estimated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appliance.config.engine import EngineConfig
from appliance.config.layout import LayoutConfig
from appliance.core.system import usable_memory
from appliance.planner.hardware import Hardware
from appliance.planner.kv_cache import CacheSettings
from appliance.planner.model_config import Architecture
from appliance.planner.tensor_info import BITS, TORCH_DTYPES

_GIB = 2**30

# Default of ``CacheConfig.gpu_memory_utilization`` in vLLM 0.32.
_DEFAULT_FRACTION = 0.92

# CUDA, NCCL and captured graphs on each device: usually 0.6 to 1.2 GiB.
_LIBRARY_BYTES = _GIB

# Copies of the widest activations that exist at once.
_LIVE_COPIES = 2


# A KV cache on a CPU; vLLM's own default would take most of the machine.
_MAX_KV_CACHE_BYTES = 2 * 1024**3

# Half a billion parameters in bfloat16. Answers of such small models often depend on less than bfloat16's precision
# (`just bench quality`), and in float32 they take 2 GiB at most.
_SMALL_WEIGHT_BYTES = 1024**3


@dataclass(frozen=True, slots=True)
class Batch:
    """vLLM's `max_num_batched_tokens` and `max_num_seqs`."""

    tokens: int
    sequences: int


def dtype_of(
    model: Architecture, engine: EngineConfig, hardware: Hardware, *, stored_bytes: int, is_pooling: bool
) -> str:
    """Return the type that the model computes in (``_resolve_auto_dtype`` of vLLM; on a CPU our own default).

    `stored_bytes` are the bytes of the weights in the checkpoint.
    """
    if engine.dtype != "auto":
        return TORCH_DTYPES[engine.dtype]
    is_quantized = engine.quantization is not None or model.quantization is not None
    if hardware.is_cpu and computes_in_float32(stored_bytes, is_pooling=is_pooling, is_quantized=is_quantized):
        return "F32"
    if model.dtype == "F32" or model.dtype is None:
        return "F16" if is_pooling else "BF16"
    return model.dtype


def batch_of(engine: EngineConfig, layout: LayoutConfig, hardware: Hardware) -> Batch:
    """Return the batch of the config, or vLLM's default for a server (``EngineArgs.get_batch_defaults``)."""
    ranks = layout.tensor_parallel * layout.pipeline_parallel
    if hardware.is_cpu:
        tokens, sequences = 2048 * ranks, 128 * ranks
    elif hardware.memory_bytes >= 160 * _GIB:
        tokens, sequences = 16384, 1024
    elif hardware.memory_bytes >= 70 * _GIB and "a100" not in hardware.name.lower():
        tokens, sequences = 8192, 1024
    else:
        tokens, sequences = 2048, 256
    configured = engine.args.get("max_num_batched_tokens")
    return Batch(configured if isinstance(configured, int) else tokens, engine.max_num_seqs or sequences)


def cache_settings(
    model: Architecture, engine: EngineConfig, layout: LayoutConfig, hardware: Hardware, dtype: str
) -> CacheSettings:
    """Return the settings of the KV cache on this hardware."""
    block_size, cache_dtype = engine.args.get("block_size"), engine.args.get("kv_cache_dtype")
    # One batch per stage, and on GPUs one that is prepared in the meantime (``VllmConfig.max_concurrent_batches``).
    batches = layout.pipeline_parallel + (0 if hardware.is_cpu else 1)
    return CacheSettings(
        block_tokens=block_size if isinstance(block_size, int) else _block_tokens(model, hardware),
        element_bytes=BITS[dtype] // 8,
        in_flight=batches * batch_of(engine, layout, hardware).tokens,
        dtype=cache_dtype if isinstance(cache_dtype, str) else "auto",
    )


def budget_bytes(layout: LayoutConfig, hardware: Hardware) -> int:
    """Return the memory that the engine may use of each device; on a CPU, of the machine, for all ranks together."""
    default = 1.0 if hardware.is_cpu else _DEFAULT_FRACTION
    return int(hardware.memory_bytes * (layout.memory_fraction or default))


def reserve_bytes(
    model: Architecture, engine: EngineConfig, layout: LayoutConfig, hardware: Hardware, dtype: str
) -> int:
    """Estimate what a rank needs besides weights and cache: activations and logits of a full batch, libraries."""
    if hardware.is_cpu:
        return 0
    batch, size = batch_of(engine, layout, hardware), BITS[dtype] // 8
    feed_forward = 2 * max(model.intermediate, model.expert_intermediate) // layout.tensor_parallel
    heads = (model.heads + 2 * model.kv_heads) * model.head_dim // layout.tensor_parallel
    activations = _LIVE_COPIES * batch.tokens * (2 * model.hidden + max(feed_forward, heads)) * size
    # Logits are sampled in float32.
    logits = 0 if model.is_encoder else 2 * batch.sequences * model.vocabulary * 4
    return activations + logits + _LIBRARY_BYTES


def kv_cache_bytes(
    engine: EngineConfig, layout: LayoutConfig, hardware: Hardware, used_bytes: int, weight_bytes: int
) -> int:
    """Return the KV cache of a rank: as configured, or what the budget leaves besides `used_bytes`."""
    if engine.kv_cache_memory_bytes is not None:
        return engine.kv_cache_memory_bytes
    if layout.kv_cache is not None and layout.kv_cache.bytes is not None:
        return layout.kv_cache.bytes
    if layout.kv_cache is not None and layout.kv_cache.fraction is not None:
        return int(hardware.memory_bytes * layout.kv_cache.fraction)
    if hardware.is_cpu:
        return max(0, cpu_kv_cache_bytes(layout, weight_bytes))
    return max(0, budget_bytes(layout, hardware) - used_bytes)


def _block_tokens(model: Architecture, hardware: Hardware) -> int:
    """Return the tokens of a block (``CpuPlatform.check_and_update_config``; on GPUs vLLM's defaults)."""
    if not hardware.is_cpu:
        return 64 if model.is_latent else 16
    return 16 if model.is_latent and not _has_amx() else 128


def _has_amx() -> bool:
    """Whether the CPU has AMX."""
    try:
        return "amx_tile" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def cpu_kv_cache_bytes(layout: LayoutConfig, weight_bytes: int) -> int:
    """Return the default, or what `memory_fraction` of the machine (or container) leaves besides the weights.

    The result is 0 or less if nothing is left.
    """
    total, available = usable_memory()
    default = min(_MAX_KV_CACHE_BYTES, available // 4)
    if layout.memory_fraction is None:
        return default
    return min(default, int(total * layout.memory_fraction) - weight_bytes)


def computes_in_float32(weight_bytes: int, *, is_pooling: bool, is_quantized: bool) -> bool:
    """Whether `dtype: auto` means float32 on a CPU.

    It does not depend on the processor, so that answers and plans are equal on all of them.
    """
    # vLLM would choose float16 for encoders, which costs precision and gains nothing on a CPU.
    return is_pooling or (not is_quantized and weight_bytes <= _SMALL_WEIGHT_BYTES)
