"""One model in one layout on some hardware: bytes of each rank, tokens of its cache, and what does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from appliance.config.engine import EngineConfig
from appliance.config.layout import LayoutConfig
from appliance.planner import memory_budget
from appliance.planner.constraints import ConstraintViolation
from appliance.planner.hardware import Hardware
from appliance.planner.kv_cache import KvCache, cache_of
from appliance.planner.memory_plan import RankPlan
from appliance.planner.model_info import ModelInfo
from appliance.planner.weight_sharding import Rank, weights

_GIB = 2**30

# Lengths that people ask about.
_CONTEXTS = (4096, 32768, 131072)

# A model that does not say how long a text may be; vLLM takes as much (``_get_and_verify_max_len``).
_USUAL_LENGTH = 2048


@dataclass(frozen=True, slots=True)
class EngineRequirements:
    """What is wanted of a model: how vLLM is set up, and whether it pools rather than writes."""

    engine: EngineConfig
    is_pooling: bool = False


@dataclass(frozen=True)
class MemoryEstimate:
    """The numbers of a plan."""

    dtype: str
    ranks: tuple[RankPlan, ...]
    cache: KvCache
    blocks: int
    max_model_len: int
    limit: int
    faults: tuple[ConstraintViolation, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens that the cache holds, as vLLM's log says it (``get_kv_cache_capacity``)."""
        return int(self.concurrency(self.max_model_len) * self.max_model_len)

    @property
    def longest(self) -> int:
        """The longest text that fits."""
        return self.cache.longest(self.blocks, self.limit) if self.cache.groups else self.limit

    def concurrency(self, tokens: int) -> float:
        """How many texts of so many tokens fit at once; 0 where nothing is cached."""
        blocks = self.cache.blocks_of(tokens)
        return self.blocks / blocks if blocks else 0.0

    @property
    def contexts(self) -> Mapping[int, float]:
        """That for a few lengths."""
        lengths = sorted({*(each for each in _CONTEXTS if each < self.max_model_len), self.max_model_len})
        return {each: round(self.concurrency(each), 2) for each in lengths} if self.cache.groups else {}


def estimate(
    subject: ModelInfo, layout: LayoutConfig, demand: EngineRequirements, hardware: Hardware
) -> MemoryEstimate:
    """Count and estimate; the layout's sizes divide."""
    model, engine = subject.architecture, demand.engine
    dtype = memory_budget.dtype_of(
        model, engine, hardware, stored_bytes=subject.stored_bytes, is_pooling=demand.is_pooling
    )
    held = weights(subject.groups, model, layout, dtype)
    cache = cache_of(model, layout, memory_budget.terms_of(model, engine, layout, hardware, dtype))
    reserve = memory_budget.reserve_bytes(model, engine, layout, hardware, dtype)
    ranks = tuple(_rank(rank, size, reserve, layout, demand, hardware, cache) for rank, size in held.items())
    wanted = engine.max_model_len or model.usual_length or _USUAL_LENGTH
    blocks = cache.blocks_in(_smallest(ranks, layout.pipeline_parallel)) if cache.groups else 0
    found = MemoryEstimate(dtype, ranks, cache, blocks, wanted, max(wanted, model.max_length or 0))
    return replace(found, faults=tuple(_faults(found, layout, hardware)))


def _rank(
    rank: Rank,
    weight_bytes: int,
    reserve: int,
    layout: LayoutConfig,
    demand: EngineRequirements,
    hardware: Hardware,
    cache: KvCache,
) -> RankPlan:
    offloaded = int(layout.cpu_offload_gib * _GIB)
    taken = max(0, weight_bytes - offloaded) + reserve
    size = memory_budget.kv_bytes(demand.engine, layout, hardware, taken, weight_bytes) if cache.groups else 0
    return RankPlan(rank.pipeline, rank.tensor, rank.data, weight_bytes, reserve, size)


def _smallest(ranks: Sequence[RankPlan], stages: int) -> list[int]:
    return [min(rank.kv_cache_bytes for rank in ranks if rank.pipeline == stage) for stage in range(stages)]


def _faults(found: MemoryEstimate, layout: LayoutConfig, hardware: Hardware) -> list[ConstraintViolation]:
    faults = _too_few(layout, hardware)
    offloaded = int(layout.cpu_offload_gib * _GIB)
    needs = [max(0, rank.weight_bytes - offloaded) + rank.reserve_bytes for rank in found.ranks]
    # On a CPU, all ranks share the machine.
    need, have = (sum(needs), "machine") if hardware.is_cpu else (max(needs), "device")
    budget = memory_budget.budget_bytes(layout, hardware)
    key = "memory_fraction" if layout.memory_fraction else "tensor_parallel"
    if need > budget:
        fault = f"needs {_gib(need)} of each {have} for weights and work, and may take {_gib(budget)}"
        faults.append(
            ConstraintViolation(("layout", key), fault, "more devices, a larger share, or a smaller model", True)
        )
    elif found.cache.groups and (longest := found.longest) < found.max_model_len:
        fault = f"leaves a KV cache for {longest} tokens, and one text may have {found.max_model_len}"
        remedy = f"engine.max_model_len must be at most {longest}" if longest else "nothing is left for the cache"
        faults.append(ConstraintViolation(("engine", "max_model_len"), fault, remedy, True))
    return faults


def _too_few(layout: LayoutConfig, hardware: Hardware) -> list[ConstraintViolation]:
    if hardware.is_cpu or layout.ranks_here <= hardware.count or layout.executor == "ray":
        return []
    fault = f"takes {layout.ranks_here} devices of this machine, which has {hardware.count}"
    return [ConstraintViolation(("layout", "tensor_parallel"), fault, "fewer ranks, or nodes with more machines", True)]


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
