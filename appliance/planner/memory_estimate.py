"""Memory of one model in one layout on some hardware: bytes of each rank, tokens of the cache, what does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from appliance.config.engine import EngineConfig
from appliance.config.layout import LayoutConfig
from appliance.config.models import EncoderConfig, LocalModelConfig, ModelConfig
from appliance.planner import memory_budget
from appliance.planner.constraints import ConstraintViolation
from appliance.planner.hardware import Hardware
from appliance.planner.kv_cache import KvCache, kv_cache
from appliance.planner.model_info import ModelInfo
from appliance.planner.weight_sharding import Rank, weight_bytes_by_rank

_GIB = 2**30

# Sequence lengths for which the concurrency is shown.
_LENGTHS = (4096, 32768, 131072)

# vLLM's default for a model that does not say (``_get_and_verify_max_len``).
_DEFAULT_LENGTH = 2048


@dataclass(frozen=True, slots=True)
class EngineRequirements:
    """The engine's config, and whether the model is an encoder."""

    engine: EngineConfig
    is_pooling: bool = False

    @classmethod
    def of(cls, config: ModelConfig) -> Self | None:
        """Return those of a model; None where vLLM does not compute it."""
        if not isinstance(config, LocalModelConfig) or not isinstance(config.engine, EngineConfig):
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
    """`blocks` and `tokens` are those of the KV cache, `limit` is the longest sequence that may be planned."""

    dtype: str
    ranks: tuple[RankPlan, ...]
    cache: KvCache
    blocks: int
    max_model_len: int
    limit: int
    violations: tuple[ConstraintViolation, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of the cache, as vLLM's log has it (``get_kv_cache_capacity``)."""
        return int(self.concurrency(self.max_model_len) * self.max_model_len)

    @property
    def longest(self) -> int:
        """The longest sequence that fits."""
        return self.cache.longest(self.blocks, self.limit) if self.cache.groups else self.limit

    def concurrency(self, tokens: int) -> float:
        """Return how many sequences of `tokens` fit at once; 0 without a cache."""
        blocks = self.cache.blocks_of(tokens)
        return self.blocks / blocks if blocks else 0.0

    @property
    def concurrency_by_length(self) -> Mapping[int, float]:
        """The concurrency for usual lengths; empty without a cache."""
        lengths = sorted({*(each for each in _LENGTHS if each < self.max_model_len), self.max_model_len})
        return {each: round(self.concurrency(each), 2) for each in lengths} if self.cache.groups else {}


def estimate(
    info: ModelInfo, layout: LayoutConfig, requirements: EngineRequirements, hardware: Hardware
) -> MemoryEstimate:
    """Estimate a layout whose sizes divide."""
    model, engine = info.architecture, requirements.engine
    dtype = memory_budget.dtype_of(
        model, engine, hardware, stored_bytes=info.stored_bytes, is_pooling=requirements.is_pooling
    )
    weights = weight_bytes_by_rank(info.groups, model, layout, dtype)
    cache = kv_cache(model, layout, memory_budget.cache_settings(model, engine, layout, hardware, dtype))
    reserve = memory_budget.reserve_bytes(model, engine, layout, hardware, dtype)
    ranks = tuple(_rank(rank, size, reserve, layout, requirements, hardware, cache) for rank, size in weights.items())
    length = engine.max_model_len or model.default_length or _DEFAULT_LENGTH
    blocks = cache.blocks_in(_smallest(ranks, layout.pipeline_parallel)) if cache.groups else 0
    found = MemoryEstimate(dtype, ranks, cache, blocks, length, max(length, model.max_length or 0))
    return replace(found, violations=tuple(_violations(found, layout, hardware)))


def _rank(
    rank: Rank,
    weight_bytes: int,
    reserve: int,
    layout: LayoutConfig,
    requirements: EngineRequirements,
    hardware: Hardware,
    cache: KvCache,
) -> RankPlan:
    offloaded = int(layout.cpu_offload_gib * _GIB)
    used_bytes = max(0, weight_bytes - offloaded) + reserve
    size = (
        memory_budget.kv_cache_bytes(requirements.engine, layout, hardware, used_bytes, weight_bytes)
        if cache.groups
        else 0
    )
    return RankPlan(rank.pipeline, rank.tensor, rank.data, weight_bytes, reserve, size)


def _smallest(ranks: Sequence[RankPlan], stages: int) -> list[int]:
    return [min(rank.kv_cache_bytes for rank in ranks if rank.pipeline == stage) for stage in range(stages)]


def _violations(found: MemoryEstimate, layout: LayoutConfig, hardware: Hardware) -> list[ConstraintViolation]:
    violations = _too_few_devices(layout, hardware)
    offloaded = int(layout.cpu_offload_gib * _GIB)
    needs = [max(0, rank.weight_bytes - offloaded) + rank.reserve_bytes for rank in found.ranks]
    # On a CPU all ranks share the memory of the machine.
    need, have = (sum(needs), "machine") if hardware.is_cpu else (max(needs), "device")
    budget = memory_budget.budget_bytes(layout, hardware)
    key = "memory_fraction" if layout.memory_fraction else "tensor_parallel"
    if need > budget:
        fault = f"needs {_gib(need)} of each {have} for weights and activations, and its budget is {_gib(budget)}"
        violations.append(
            ConstraintViolation(("layout", key), fault, "more devices, a larger share, or a smaller model", True)
        )
    elif found.cache.groups and (longest := found.longest) < found.max_model_len:
        fault = f"leaves a KV cache for {longest} tokens, and one text may have {found.max_model_len}"
        remedy = f"engine.max_model_len must be at most {longest}" if longest else "nothing is left for the cache"
        violations.append(ConstraintViolation(("engine", "max_model_len"), fault, remedy, True))
    return violations


def _too_few_devices(layout: LayoutConfig, hardware: Hardware) -> list[ConstraintViolation]:
    if hardware.is_cpu or layout.local_ranks <= hardware.count or layout.executor == "ray":
        return []
    fault = f"takes {layout.local_ranks} devices of this machine, which has {hardware.count}"
    return [ConstraintViolation(("layout", "tensor_parallel"), fault, "fewer ranks, or nodes with more machines", True)]


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
