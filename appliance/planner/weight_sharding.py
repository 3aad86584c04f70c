"""How vLLM shards the weights over the ranks of a layout: the rule of each tensor by its name, the bytes of each rank.

The rules of vLLM 0.32: ``model_executor/layers/linear.py`` (column and row parallel, queries with keys and
values), ``vocab_parallel_embedding.py``, and ``fused_moe``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise
from math import prod

from appliance.config.layout import LayoutConfig
from appliance.planner.model_config import MAX_EXPERTS, Architecture
from appliance.planner.tensor_info import FLOATS, TensorInfo, bytes_of

# Tensors that vLLM keeps in float32, whatever their type in the checkpoint.
_FLOAT32_NAMES = ("e_score_correction_bias", "A_log")


class ShardRule(StrEnum):
    """Which part of a tensor a rank holds."""

    COLUMN = "column"
    """A share of the outputs."""

    KEYS = "keys"
    """A share of the KV heads; a copy if there are fewer heads than ranks."""

    FUSED = "fused"
    """Queries, keys and values in one tensor: a share of the queries, and of the keys and values as above."""

    ROW = "row"
    """A share of the inputs."""

    VOCABULARY = "vocabulary"
    """A share of the rows, padded to a multiple of 64."""

    WHOLE = "whole"
    """All of it."""


@dataclass(frozen=True, slots=True)
class ShardedTensor:
    """One tensor and its sharding rule.

    `layer` and `expert` are the numbers of those it belongs to, or None.
    `holds_experts`: the first dimension is the experts of a layer.
    """

    tensor: TensorInfo
    rule: ShardRule
    layer: int | None
    expert: int | None = None
    holds_experts: bool = False


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Tensors that differ only in their expert: `sample` is one of them, `count` how many each of the `experts` has.

    `experts` is empty if they belong to none.
    """

    sample: ShardedTensor
    experts: tuple[int, ...]
    count: int


# The number of a layer or an expert in a name.
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks?|layer)\.(\d+)\.")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_ALL_EXPERTS = re.compile(r"\.experts\.[^.\d]")
_MULTIMODAL = re.compile(r"(?:^|\.)(?:visual|vision_tower|vision_model|audio_tower|multi_modal_projector)\.")

# Rules by the name without its ending `weight`, `bias`, `scales` and the like.
_RULES: tuple[tuple[ShardRule, re.Pattern[str]], ...] = (
    (
        ShardRule.VOCABULARY,
        re.compile(r"(embed_tokens|wte|tok_embeddings|word_embeddings|lm_head|embed_out|embed_in)$"),
    ),
    (ShardRule.VOCABULARY, re.compile(r"embeddings\.(position|token_type)_embeddings$")),
    (ShardRule.FUSED, re.compile(r"(qkv_proj|query_key_value|c_attn|Wqkv)$")),
    (ShardRule.KEYS, re.compile(r"(k_proj|v_proj|key|value|k_lin|v_lin)$")),
    (
        ShardRule.COLUMN,
        re.compile(
            r"(q_proj|query|q_lin|q_b_proj|kv_b_proj|gate_proj|up_proj|gate_up_proj|fc1|c_fc|w1|w3|wi|Wi|lin1|fc11|fc12"
            r"|dense_h_to_4h|intermediate\.dense)$"
        ),
    ),
    (
        ShardRule.ROW,
        re.compile(
            r"(o_proj|out_proj|out_lin|down_proj|fc2|c_proj|w2|wo|Wo|lin2|dense_4h_to_h|self_attention\.dense"
            r"|attention\.dense|output\.dense)$"
        ),
    ),
)

# Tensors of a checkpoint that vLLM does not load: old buffers, the order of groups, training heads.
_UNUSED = re.compile(
    r"(\.g_idx|rotary_emb\.inv_freq|position_ids|masked_bias|\.attn\.bias|num_batches_tracked)$|^(cls\.|mtp\.|model\.mtp\.)"
)

# What follows the name of a layer.
_ENDING = re.compile(
    r"(?:\.(?:weight|bias)(?:_\w+)?|\.(?:q?scales?|qweight|qzeros|\w*scale\w*)|_bias|_blocks|_scales)$"
)


def sharded_tensors(tensors: Sequence[TensorInfo], model: Architecture) -> list[ShardedTensor]:
    """Return the tensors that vLLM loads, each with its rule."""
    named = ((tensor, _NUMBER.sub("0", tensor.name)) for tensor in tensors)
    return [_sharded(tensor, plain) for tensor, plain in named if _is_loaded(tensor.name, plain, model)]


def group_tensors(tensors: Sequence[ShardedTensor]) -> list[TensorGroup]:
    """Group equal tensors, a few groups per layer, so that estimating a layout does not visit every tensor."""
    found: dict[object, tuple[ShardedTensor, Counter[int | None]]] = {}
    for sharded in tensors:
        tensor = sharded.tensor
        plain = _NUMBER.sub("0", tensor.name)
        key = (plain, tensor.dtype, tensor.shape, sharded.layer, sharded.holds_experts, sharded.expert is None)
        equal = found.get(key)
        if equal is None:
            equal = found[key] = (sharded, Counter())
        equal[1][sharded.expert] += 1
    return [group for sample, counts in found.values() for group in _groups(sample, counts)]


def _groups(sample: ShardedTensor, counts: Counter[int | None]) -> Iterator[TensorGroup]:
    for count in set(counts.values()):
        experts = (expert for expert, each in counts.items() if each == count and expert is not None)
        yield TensorGroup(sample, tuple(sorted(experts)), count)


def _is_loaded(name: str, plain: str, model: Architecture) -> bool:
    if _is_unused(plain) or (model.is_tied and _is_head(plain)):
        return False
    # Layers past the last are for multi-token prediction, a model of its own (DeepSeek-V3 report, section 2.2).
    layer = _layer(name, plain)
    # vLLM does not load the pooler of an encoder that embeds.
    is_pooler = model.is_encoder and ("pooler." in name) and re.search(r"(^|\.)pooler\.", name) is not None
    return not (layer is not None and layer >= model.layers) and not (is_pooler and _is_embedder(model))


def _layer(name: str, plain: str) -> int | None:
    """Return the number of the tensor's layer in the language model; None if it belongs to none."""
    found = None if _is_multimodal(plain) else _LAYER.search(name)
    return None if found is None else int(found[1])


# Without the numbers of layers and experts, a model has few names.
@lru_cache(maxsize=4096)
def _is_unused(plain: str) -> bool:
    return _UNUSED.search(plain) is not None


@lru_cache(maxsize=4096)
def _is_head(plain: str) -> bool:
    return re.search(r"(^|\.)lm_head\.weight$", plain) is not None


@lru_cache(maxsize=4096)
def _is_multimodal(plain: str) -> bool:
    return _MULTIMODAL.search(plain) is not None


@lru_cache(maxsize=4096)
def _holds_experts(plain: str) -> bool:
    return _ALL_EXPERTS.search(plain) is not None


def _is_embedder(model: Architecture) -> bool:
    return not model.name.endswith("Classification")


def _sharded(tensor: TensorInfo, plain: str) -> ShardedTensor:
    expert = _EXPERT.search(tensor.name)
    return ShardedTensor(
        tensor,
        _rule(plain),
        _layer(tensor.name, plain),
        int(expert[1]) if expert else None,
        holds_experts=_holds_experts(plain) and len(tensor.shape) > 1 and tensor.shape[0] <= MAX_EXPERTS,
    )


@lru_cache(maxsize=4096)
def _rule(name: str) -> ShardRule:
    bare = _ENDING.sub("", name)
    if name.endswith((".sinks", ".attention_sink_bias")):
        return ShardRule.COLUMN
    found = next((rule for rule, pattern in _RULES if pattern.search(bare)), ShardRule.WHOLE)
    is_row_bias = found is ShardRule.ROW and name.endswith(("bias", "bias_ih"))
    # Every rank holds the indexer of sparse attention (``Indexer`` in vLLM's deepseek_v2).
    return ShardRule.WHOLE if is_row_bias or ".indexer." in name else found


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
