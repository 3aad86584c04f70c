"""The bytes of weights that each rank of a layout holds, tensor by tensor."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from appliance.config.layout import LayoutConfig
from appliance.planner.model_config import Architecture
from appliance.planner.tensor_info import PLAIN, bytes_of
from appliance.planner.tensor_parallel import Group, ShardPart, ShardRule

# What vLLM keeps in 32 bits, in whatever type it was written.
_PRECISE = ("e_score_correction_bias", "A_log")


@dataclass(frozen=True, slots=True)
class Rank:
    """Where a rank stands in its layout."""

    pipeline: int
    tensor: int
    data: int


@dataclass(slots=True)
class _Stage:
    """The bytes of one pipeline stage: what every rank of it holds, and what each of some experts takes."""

    common: int = 0
    experts: Counter[Sequence[int]] = field(default_factory=Counter)

    def by_expert(self) -> Counter[int]:
        """The bytes of each expert; those of a model are mostly the same in every layer."""
        found: Counter[int] = Counter()
        for experts, held in self.experts.items():
            for expert in experts:
                found[expert] += held
        return found


def weights(loaded: list[Group], model: Architecture, layout: LayoutConfig, dtype: str) -> Mapping[Rank, int]:
    """Bytes of weights by rank; `dtype` is what the model computes in, which plain tensors are turned into."""
    stages = [_Stage() for _ in range(layout.pipeline_parallel)]
    ends = stage_ends(model.layers, layout.pipeline_parallel)
    for group in loaded:
        for number in _stages_of(group.part, ends, model):
            _add(stages[number], group, model, layout, dtype)
    shares = _expert_shares(model.experts, layout)
    found = {}
    for pipeline, stage in enumerate(stages):
        experts = stage.by_expert()
        for data in range(layout.data_parallel):
            for tensor in range(layout.tensor_parallel):
                mine = shares[data * layout.tensor_parallel + tensor] if layout.expert_parallel else experts
                held = stage.common + sum(experts[expert] for expert in mine)
                found[Rank(pipeline, tensor, data)] = held
    return found


def stage_ends(layers: int, stages: int) -> list[int]:
    """
    After which layer each stage ends; those left over go to the stages before the last (``get_pp_indices`` of vLLM).
    """
    sizes = [layers // stages] * stages
    for number in range(2, layers % stages + 2):
        sizes[-number] += 1
    return [sum(sizes[: number + 1]) for number in range(stages)]


def local_heads(heads: int, ranks: int) -> int:
    """Heads of keys that a rank holds: its share, and one where there are fewer heads than ranks."""
    return max(1, heads // ranks)


def _stages_of(part: ShardPart, ends: list[int], model: Architecture) -> Iterable[int]:
    last = len(ends) - 1
    if part.layer is not None:
        return (next((number for number, end in enumerate(ends) if part.layer < end), last),)
    name = part.tensor.name
    if part.cut is ShardRule.VOCABULARY and "lm_head" not in name and "embed_out" not in name:
        # Tied embeddings are the last stage's output as well.
        return {0, last} if model.is_tied else (0,)
    is_seeing = any(word in name for word in ("visual", "vision", "audio", "projector"))
    return (0,) if is_seeing else (last,)


def _add(stage: _Stage, group: Group, model: Architecture, layout: LayoutConfig, dtype: str) -> None:
    part = group.part
    kept = _dtype(part, model, dtype)
    is_expert = part.expert is not None or part.holds_experts
    # Without expert parallelism, the experts are cut over the copies as well (``FusedMoEParallelConfig.make``).
    ranks = layout.tensor_parallel * (layout.data_parallel if is_expert else 1)
    if is_expert and layout.expert_parallel:
        ranks = 1
    if not part.holds_experts:
        held = bytes_of(_local(part, part.tensor.shape, ranks, model), kept) * group.count
        if part.expert is None:
            stage.common += held
        else:
            stage.experts[group.experts] += held
        return
    each = bytes_of(_local(part, part.tensor.shape[1:], ranks, model), kept) * group.count
    stage.experts[range(part.tensor.shape[0])] += each


def _dtype(part: ShardPart, model: Architecture, dtype: str) -> str:
    """The type a tensor has once it is loaded: plain ones are turned into the model's, those of scales into float32
    unless they scale packs.
    """
    if part.tensor.name.endswith(_PRECISE):
        return "F32"
    if part.tensor.dtype not in PLAIN:
        return part.tensor.dtype
    said = model.quantization
    is_scale = said is not None and not said.has_packs and "scale" in part.tensor.name.rpartition(".")[2]
    return "F32" if is_scale else dtype


def _local(part: ShardPart, shape: tuple[int, ...], ranks: int, model: Architecture) -> int:
    """Elements that one rank holds of a tensor of this shape."""
    if part.cut is ShardRule.VOCABULARY and len(shape) > 0:
        padded = -(-shape[0] // 64) * 64
        return padded // ranks * prod(shape[1:])
    if part.cut is ShardRule.WHOLE or not shape:
        return prod(shape)
    dimension = _dimension(part, shape, model)
    if dimension is None:
        return prod(shape)
    others = prod(shape) // shape[dimension] if shape[dimension] else 0
    return _share(part, shape[dimension], ranks, model) * others


def _dimension(part: ShardPart, shape: tuple[int, ...], model: Architecture) -> int | None:
    """The dimension that is cut; None where all of it is on every rank, as one scale for many weights is."""
    ending = part.tensor.name.rpartition(".")[2]
    is_row = part.cut is ShardRule.ROW
    if ending in ("weight_shape", "weight_scale_2", "weight_global_scale") or (len(shape) == 1 and is_row):
        return None
    is_transposed = model.quantization is not None and model.quantization.is_transposed
    if len(shape) > 1 and is_transposed and ending in ("qweight", "qzeros", "scales"):
        return 0 if is_row else 1
    dimension = 1 if is_row else 0
    return None if shape[dimension] == 1 else dimension


def _share(part: ShardPart, size: int, ranks: int, model: Architecture) -> int:
    if part.cut is ShardRule.KEYS:
        return -(-size * local_heads(model.kv_heads, ranks) // model.kv_heads)
    if part.cut is ShardRule.FUSED:
        whole = model.heads + 2 * model.kv_heads
        local = model.heads // ranks + 2 * local_heads(model.kv_heads, ranks)
        return -(-size * local // whole)
    return -(-size // ranks)


def _expert_shares(experts: int, layout: LayoutConfig) -> Mapping[int, range]:
    """The experts of each rank, in a row; the first ranks have those that are left over (``determine_expert_map``)."""
    ranks = layout.tensor_parallel * layout.data_parallel
    each, over = divmod(experts, ranks)
    shares: dict[int, range] = defaultdict(lambda: range(0))
    for rank in range(ranks):
        start = rank * each + min(rank, over)
        shares[rank] = range(start, start + each + (rank < over))
    return shares
