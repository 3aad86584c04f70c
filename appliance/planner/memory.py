"""Memory of one model in one layout on some hardware: budget, weights, activations and KV cache of each rank.

vLLM measures the activations of a full batch and the memory of libraries when it starts; here they are estimated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from appliance.config.engine import EngineConfig
from appliance.config.layout import LayoutConfig
from appliance.config.models import EncoderConfig, LanguageModelConfig, ModelConfig
from appliance.core.system import usable_memory
from appliance.planner.hardware import Hardware
from appliance.planner.kv_cache import KvCache
from appliance.planner.model_info import ModelInfo
from appliance.planner.safetensors_header import BITS, TORCH_DTYPES
from appliance.planner.weight_sharding import weight_bytes_by_rank

_GIB = 2**30

# Default of ``CacheConfig.gpu_memory_utilization`` in vLLM 0.32.
_DEFAULT_FRACTION = 0.92

# vLLM's default for a model that does not say (``_get_and_verify_max_len``).
_DEFAULT_LENGTH = 2048

# CUDA, NCCL and captured graphs on each device: usually 0.6 to 1.2 GiB.
_LIBRARY_BYTES = _GIB

# Copies of the widest activations that exist at once.
_LIVE_COPIES = 2

# A KV cache on a CPU; vLLM's own default would take most of the machine.
_MAX_KV_CACHE_BYTES = 2 * _GIB

# Half a billion parameters in bfloat16. Answers of such small models often depend on less than bfloat16's precision
# (`just bench quality`), and in float32 they take 2 GiB at most.
_SMALL_WEIGHT_BYTES = _GIB

# Sequence lengths for which the concurrency is shown.
_LENGTHS = (4096, 32768, 131072)


@dataclass(frozen=True, slots=True)
class EngineRequirements:
    """The engine's config, and whether the model is an encoder."""

    engine: EngineConfig
    is_pooling: bool = False

    @classmethod
    def of(cls, config: ModelConfig) -> Self | None:
        """Return those of a model; None where vLLM does not compute it."""
        if not isinstance(config, LanguageModelConfig) or not isinstance(config.engine, EngineConfig):
            return None
        return cls(config.engine, is_pooling=isinstance(config, EncoderConfig))


@dataclass(frozen=True, slots=True)
class RankPlan:
    """Memory of one rank: weights are exact, the reserve is an estimate, the KV cache is configured or what is left."""

    pipeline: int
    tensor: int
    data: int
    weight_bytes: int
    reserve_bytes: int
    kv_cache_bytes: int


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory of a model in a layout whose sizes divide, and how long and how many sequences fit into it."""

    info: ModelInfo
    layout: LayoutConfig
    requirements: EngineRequirements
    hardware: Hardware

    @cached_property
    def dtype(self) -> str:
        """The type that the model computes in (``_resolve_auto_dtype`` of vLLM; on a CPU our own default)."""
        model, engine, is_pooling = self.info.architecture, self.requirements.engine, self.requirements.is_pooling
        if engine.dtype != "auto":
            return TORCH_DTYPES[engine.dtype]
        is_quantized = engine.quantization is not None or model.quantization is not None
        if self.hardware.is_cpu and computes_in_float32(
            self.info.stored_bytes, is_pooling=is_pooling, is_quantized=is_quantized
        ):
            return "F32"
        if model.dtype == "F32" or model.dtype is None:
            return "F16" if is_pooling else "BF16"
        return model.dtype

    @cached_property
    def budget_bytes(self) -> int:
        """Memory that the engine may use of each device; on a CPU, of the machine, for all ranks together."""
        default = 1.0 if self.hardware.is_cpu else _DEFAULT_FRACTION
        return int(self.hardware.memory_bytes * (self.layout.memory_fraction or default))

    @cached_property
    def cache(self) -> KvCache:
        """The KV cache."""
        args = self.requirements.engine.args
        block_size, cache_dtype = args.get("block_size"), args.get("kv_cache_dtype")
        # One batch per stage, and on GPUs one that is prepared in the meantime (``VllmConfig.max_concurrent_batches``).
        batches = self.layout.pipeline_parallel + (0 if self.hardware.is_cpu else 1)
        return KvCache(
            self.info.architecture.attention,
            self.layout,
            block_tokens=block_size if isinstance(block_size, int) else self._block_tokens,
            element_bytes=BITS[self.dtype] // 8,
            in_flight=batches * self._batch[0],
            dtype=cache_dtype if isinstance(cache_dtype, str) else "auto",
        )

    @cached_property
    def ranks(self) -> tuple[RankPlan, ...]:
        """The memory of each rank."""
        weights = weight_bytes_by_rank(self.info.groups, self.info.architecture, self.layout, self.dtype)
        return tuple(
            RankPlan(*rank, size, self._reserve_bytes, self._kv_cache_bytes(size)) for rank, size in weights.items()
        )

    @property
    def max_model_len(self) -> int:
        """The longest sequence that the engine accepts, in tokens."""
        return self.requirements.engine.max_model_len or self.info.architecture.default_length or _DEFAULT_LENGTH

    @cached_property
    def blocks(self) -> int:
        """Blocks of the KV cache."""
        stages = range(self.layout.pipeline_parallel)
        smallest = [min(rank.kv_cache_bytes for rank in self.ranks if rank.pipeline == stage) for stage in stages]
        return self.cache.blocks_in(smallest) if self.cache.groups else 0

    @property
    def tokens(self) -> int:
        """Tokens of the cache, as vLLM's log has it (``get_kv_cache_capacity``)."""
        return int(self._concurrency(self.max_model_len) * self.max_model_len)

    @cached_property
    def longest(self) -> int:
        """The longest sequence that fits."""
        limit = max(self.max_model_len, self.info.architecture.max_length or 0)
        return self.cache.longest(self.blocks, limit) if self.cache.groups else limit

    @property
    def concurrency_by_length(self) -> Mapping[int, float]:
        """How many sequences of usual lengths fit at once; empty without a cache."""
        lengths = sorted({*(each for each in _LENGTHS if each < self.max_model_len), self.max_model_len})
        return {each: round(self._concurrency(each), 2) for each in lengths} if self.cache.groups else {}

    def used_bytes(self, weight_bytes: int) -> int:
        """Return what a rank with these weights needs besides the KV cache."""
        return max(0, weight_bytes - int(self.layout.cpu_offload_gib * _GIB)) + self._reserve_bytes

    def _concurrency(self, tokens: int) -> float:
        blocks = self.cache.blocks_of(tokens)
        return self.blocks / blocks if blocks else 0.0

    @property
    def _batch(self) -> tuple[int, int]:
        """Tokens and sequences of a batch, by default those of a server (``EngineArgs.get_batch_defaults`` of vLLM)."""
        engine, hardware = self.requirements.engine, self.hardware
        if hardware.is_cpu:
            ranks = self.layout.tensor_parallel * self.layout.pipeline_parallel
            tokens, sequences = 2048 * ranks, 128 * ranks
        elif hardware.memory_bytes >= 160 * _GIB:
            tokens, sequences = 16384, 1024
        elif hardware.memory_bytes >= 70 * _GIB and "a100" not in hardware.name.lower():
            tokens, sequences = 8192, 1024
        else:
            tokens, sequences = 2048, 256
        configured = engine.args.get("max_num_batched_tokens")
        return configured if isinstance(configured, int) else tokens, engine.max_num_seqs or sequences

    @property
    def _block_tokens(self) -> int:
        """Tokens of a block (``CpuPlatform.check_and_update_config``; on GPUs vLLM's defaults)."""
        is_latent = self.info.architecture.is_latent
        if not self.hardware.is_cpu:
            return 64 if is_latent else 16
        return 16 if is_latent and not _has_amx() else 128

    @cached_property
    def _reserve_bytes(self) -> int:
        """Estimate of what a rank needs besides weights and cache: activations and logits of a batch, libraries."""
        if self.hardware.is_cpu:
            return 0
        model, ranks = self.info.architecture, self.layout.tensor_parallel
        tokens, sequences = self._batch
        feed_forward = 2 * max(model.intermediate, model.expert_intermediate) // ranks
        heads = (model.heads + 2 * model.kv_heads) * model.head_dim // ranks
        elements = _LIVE_COPIES * tokens * (2 * model.hidden + max(feed_forward, heads))
        # Logits are sampled in float32.
        logits = 0 if model.is_encoder else 2 * sequences * model.vocabulary * 4
        return elements * (BITS[self.dtype] // 8) + logits + _LIBRARY_BYTES

    def _kv_cache_bytes(self, weight_bytes: int) -> int:
        """Return the KV cache of a rank: as configured, or what the budget leaves."""
        configured = self.layout.kv_cache
        if not self.cache.groups:
            return 0
        if self.requirements.engine.kv_cache_memory_bytes is not None:
            return self.requirements.engine.kv_cache_memory_bytes
        if configured is not None and configured.bytes is not None:
            return configured.bytes
        if configured is not None and configured.fraction is not None:
            return int(self.hardware.memory_bytes * configured.fraction)
        if self.hardware.is_cpu:
            return max(0, cpu_kv_cache_bytes(self.layout, weight_bytes))
        return max(0, self.budget_bytes - self.used_bytes(weight_bytes))


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


def _has_amx() -> bool:
    """Whether the CPU has AMX."""
    try:
        return "amx_tile" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
