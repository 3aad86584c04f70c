"""What of a device's memory the weights, the work and the KV cache may take.

Weights are counted; what vLLM measures when it starts, the work of a full batch and what the libraries take, is
estimated here, and the plan says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appliance.config.engine import EngineConfig
from appliance.config.layout import LayoutConfig
from appliance.engines.vllm.cpu_memory import computes_in_float32, cpu_kv_bytes
from appliance.planner.hardware import Hardware
from appliance.planner.kv_cache import Terms
from appliance.planner.model_config import Architecture
from appliance.planner.tensor_info import BITS, TYPES

_GIB = 2**30

# Of a device's memory, where the config does not say (``CacheConfig.gpu_memory_utilization`` of vLLM 0.32).
_USUAL_FRACTION = 0.92

# What CUDA, NCCL and captured graphs take of each device beside tensors: 0.6 to 1.2 GiB as a rule.
_LIBRARIES_BYTES = _GIB

# Copies of the widest vectors of a batch that are alive at once.
_ALIVE = 2


@dataclass(frozen=True, slots=True)
class Batch:
    """How much work vLLM does at once: tokens of one step, texts."""

    tokens: int
    texts: int


def dtype_of(
    model: Architecture, engine: EngineConfig, hardware: Hardware, *, stored_bytes: int, is_pooling: bool
) -> str:
    """The type that the model computes in (``_resolve_auto_dtype`` of vLLM, and what we choose on a CPU).

    `stored_bytes` are the weights in the model's files.
    """
    if engine.dtype != "auto":
        return TYPES[engine.dtype]
    is_quantized = engine.quantization is not None or model.quantization is not None
    if hardware.is_cpu and computes_in_float32(stored_bytes, is_pooling=is_pooling, is_quantized=is_quantized):
        return "F32"
    if model.dtype == "F32" or model.dtype is None:
        return "F16" if is_pooling else "BF16"
    return model.dtype


def batch_of(engine: EngineConfig, layout: LayoutConfig, hardware: Hardware) -> Batch:
    """vLLM's defaults for its server (``EngineArgs.get_batch_defaults``), or what the config says."""
    ranks = layout.tensor_parallel * layout.pipeline_parallel
    if hardware.is_cpu:
        tokens, texts = 2048 * ranks, 128 * ranks
    elif hardware.memory_bytes >= 160 * _GIB:
        tokens, texts = 16384, 1024
    elif hardware.memory_bytes >= 70 * _GIB and "a100" not in hardware.name.lower():
        tokens, texts = 8192, 1024
    else:
        tokens, texts = 2048, 256
    said = engine.args.get("max_num_batched_tokens")
    return Batch(int(said) if isinstance(said, int) else tokens, engine.max_num_seqs or texts)


def terms_of(model: Architecture, engine: EngineConfig, layout: LayoutConfig, hardware: Hardware, dtype: str) -> Terms:
    """What the KV cache is built of on this hardware."""
    said, cache = engine.args.get("block_size"), engine.args.get("kv_cache_dtype")
    # A batch for each stage, and on GPUs one that is prepared meanwhile (``VllmConfig.max_concurrent_batches``).
    batches = layout.pipeline_parallel + (0 if hardware.is_cpu else 1)
    return Terms(
        block_tokens=said if isinstance(said, int) else _block_tokens(model, hardware),
        element_bytes=BITS[dtype] // 8,
        in_flight=batches * batch_of(engine, layout, hardware).tokens,
        dtype=cache if isinstance(cache, str) else "auto",
    )


def budget_bytes(layout: LayoutConfig, hardware: Hardware) -> int:
    """What the engine may take of each device; on a CPU, of the machine, all ranks together."""
    usual = 1.0 if hardware.is_cpu else _USUAL_FRACTION
    return int(hardware.memory_bytes * (layout.memory_fraction or usual))


def reserve_bytes(
    model: Architecture, engine: EngineConfig, layout: LayoutConfig, hardware: Hardware, dtype: str
) -> int:
    """
    An estimate of what a rank needs beside weights and cache: the vectors of a full batch, its logits, the libraries.
    """
    if hardware.is_cpu:
        return 0
    batch, size = batch_of(engine, layout, hardware), BITS[dtype] // 8
    wide = 2 * max(model.intermediate, model.expert_intermediate) // layout.tensor_parallel
    heads = (model.heads + 2 * model.kv_heads) * model.head_dim // layout.tensor_parallel
    vectors = _ALIVE * batch.tokens * (2 * model.hidden + max(wide, heads)) * size
    # Logits are sampled in float32.
    logits = 0 if model.is_encoder else 2 * batch.texts * model.vocabulary * 4
    return vectors + logits + _LIBRARIES_BYTES


def kv_bytes(engine: EngineConfig, layout: LayoutConfig, hardware: Hardware, taken: int, weights: int) -> int:
    """Memory of the KV cache of a rank: what the config says, or what the budget leaves beside `taken`."""
    if engine.kv_cache_memory_bytes is not None:
        return engine.kv_cache_memory_bytes
    if layout.kv_cache is not None and layout.kv_cache.bytes is not None:
        return layout.kv_cache.bytes
    if layout.kv_cache is not None and layout.kv_cache.fraction is not None:
        return int(hardware.memory_bytes * layout.kv_cache.fraction)
    if hardware.is_cpu:
        return max(0, cpu_kv_bytes(layout, weights))
    return max(0, budget_bytes(layout, hardware) - taken)


def _block_tokens(model: Architecture, hardware: Hardware) -> int:
    """
    Tokens in a block (``CpuPlatform.check_and_update_config``; on GPUs vLLM's default, and that of latent attention).
    """
    if not hardware.is_cpu:
        return 64 if model.is_latent else 16
    return 16 if model.is_latent and not _has_tiles() else 128


def _has_tiles() -> bool:
    """Whether the CPU multiplies matrices by tiles (AMX)."""
    try:
        return "amx_tile" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
