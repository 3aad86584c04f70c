"""Bytes of weights on each rank of a layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod

from appliance.config.layout import LayoutConfig
from appliance.planner.model_config import Architecture
from appliance.planner.tensor_info import FLOATS, bytes_of
from appliance.planner.tensor_parallel import ShardedTensor, ShardRule, TensorGroup

# Tensors that vLLM keeps in float32, whatever their type in the checkpoint.
_FLOAT32_NAMES = ("e_score_correction_bias", "A_log")


@dataclass(frozen=True, slots=True)
class Rank:
    """The coordinates of a rank in its layout."""

    pipeline: int
    tensor: int
    data: int


@dataclass(slots=True)
class _Stage:
    """Bytes of one pipeline stage: those that every rank holds, and those of each expert, by groups of experts."""

    common: int = 0
    experts: Counter[Sequence[int]] = field(default_factory=Counter)

    def by_expert(self) -> Counter[int]:
        """Return the bytes of each expert."""
        found: Counter[int] = Counter()
        for experts, size in self.experts.items():
            for expert in experts:
                found[expert] += size
        return found


def weight_bytes_by_rank(
    groups: list[TensorGroup], model: Architecture, layout: LayoutConfig, dtype: str
) -> Mapping[Rank, int]:
    """Return the bytes of weights of each rank; `dtype` is the model's, to which float tensors are converted."""
    stages = [_Stage() for _ in range(layout.pipeline_parallel)]
    ends = stage_ends(model.layers, layout.pipeline_parallel)
    for group in groups:
        for number in _stages_of(group.sample, ends, model):
            _add(stages[number], group, model, layout, dtype)
    shares = _expert_shares(model.experts, layout)
    found = {}
    for pipeline, stage in enumerate(stages):
        experts = stage.by_expert()
        for data in range(layout.data_parallel):
            for tensor in range(layout.tensor_parallel):
                local_experts = shares[data * layout.tensor_parallel + tensor] if layout.expert_parallel else experts
                found[Rank(pipeline, tensor, data)] = stage.common + sum(experts[expert] for expert in local_experts)
    return found


def stage_ends(layers: int, stages: int) -> list[int]:
    """Return the end layer of each stage; the rest goes to the stages before the last (``get_pp_indices`` of vLLM)."""
    sizes = [layers // stages] * stages
    for number in range(2, layers % stages + 2):
        sizes[-number] += 1
    return [sum(sizes[: number + 1]) for number in range(stages)]


def local_heads(heads: int, ranks: int) -> int:
    """Return the KV heads of a rank: its share, or one if there are fewer heads than ranks."""
    return max(1, heads // ranks)


def _stages_of(sharded: ShardedTensor, ends: list[int], model: Architecture) -> Iterable[int]:
    last = len(ends) - 1
    if sharded.layer is not None:
        return (next((number for number, end in enumerate(ends) if sharded.layer < end), last),)
    name = sharded.tensor.name
    if sharded.rule is ShardRule.VOCABULARY and "lm_head" not in name and "embed_out" not in name:
        # Tied embeddings are also the output layer, in the last stage.
        return {0, last} if model.is_tied else (0,)
    is_multimodal = any(word in name for word in ("visual", "vision", "audio", "projector"))
    return (0,) if is_multimodal else (last,)


def _add(stage: _Stage, group: TensorGroup, model: Architecture, layout: LayoutConfig, dtype: str) -> None:
    sharded = group.sample
    stored_dtype = _dtype(sharded, model, dtype)
    is_expert = sharded.expert is not None or sharded.holds_experts
    # Without expert parallelism, experts are also sharded over data-parallel copies (``FusedMoEParallelConfig.make``).
    ranks = layout.tensor_parallel * (layout.data_parallel if is_expert else 1)
    if is_expert and layout.expert_parallel:
        ranks = 1
    if not sharded.holds_experts:
        size = bytes_of(_local(sharded, sharded.tensor.shape, ranks, model), stored_dtype) * group.count
        if sharded.expert is None:
            stage.common += size
        else:
            stage.experts[group.experts] += size
        return
    each = bytes_of(_local(sharded, sharded.tensor.shape[1:], ranks, model), stored_dtype) * group.count
    stage.experts[range(sharded.tensor.shape[0])] += each


def _dtype(sharded: ShardedTensor, model: Architecture, dtype: str) -> str:
    """Return the type of a tensor after loading: floats become the model's dtype, scales float32 unless weights are
    packed.
    """
    if sharded.tensor.name.endswith(_FLOAT32_NAMES):
        return "F32"
    if sharded.tensor.dtype not in FLOATS:
        return sharded.tensor.dtype
    quantization = model.quantization
    is_scale = (
        quantization is not None and not quantization.has_packs and "scale" in sharded.tensor.name.rpartition(".")[2]
    )
    return "F32" if is_scale else dtype


def _local(sharded: ShardedTensor, shape: tuple[int, ...], ranks: int, model: Architecture) -> int:
    """Return how many elements of a tensor of this shape one rank holds."""
    if sharded.rule is ShardRule.VOCABULARY and len(shape) > 0:
        padded = -(-shape[0] // 64) * 64
        return padded // ranks * prod(shape[1:])
    if sharded.rule is ShardRule.WHOLE or not shape:
        return prod(shape)
    dimension = _dimension(sharded, shape, model)
    if dimension is None:
        return prod(shape)
    others = prod(shape) // shape[dimension] if shape[dimension] else 0
    return _share(sharded, shape[dimension], ranks, model) * others


def _dimension(sharded: ShardedTensor, shape: tuple[int, ...], model: Architecture) -> int | None:
    """Return the dimension that is sharded; None if every rank holds the whole tensor, such as a scale."""
    ending = sharded.tensor.name.rpartition(".")[2]
    is_row = sharded.rule is ShardRule.ROW
    if ending in ("weight_shape", "weight_scale_2", "weight_global_scale") or (len(shape) == 1 and is_row):
        return None
    is_transposed = model.quantization is not None and model.quantization.is_transposed
    if len(shape) > 1 and is_transposed and ending in ("qweight", "qzeros", "scales"):
        return 0 if is_row else 1
    dimension = 1 if is_row else 0
    return None if shape[dimension] == 1 else dimension


def _share(sharded: ShardedTensor, size: int, ranks: int, model: Architecture) -> int:
    if sharded.rule is ShardRule.KEYS:
        return -(-size * local_heads(model.kv_heads, ranks) // model.kv_heads)
    if sharded.rule is ShardRule.FUSED:
        total_heads = model.heads + 2 * model.kv_heads
        local_heads_ = model.heads // ranks + 2 * local_heads(model.kv_heads, ranks)
        return -(-size * local_heads_ // total_heads)
    return -(-size // ranks)


def _expert_shares(experts: int, layout: LayoutConfig) -> list[range]:
    """Return the experts of each rank, contiguous; the first ranks take the rest (``determine_expert_map`` of vLLM)."""
    ranks = layout.tensor_parallel * layout.data_parallel
    each, over = divmod(experts, ranks)
    starts = [rank * each + min(rank, over) for rank in range(ranks + 1)]
    return [range(start, end) for start, end in pairwise(starts)]
