"""How vLLM shards the weights over the ranks of a layout: the rule of each tensor by its name, the bytes of each rank.

The rules of vLLM 0.32: ``model_executor/layers/linear.py`` (column and row parallel, queries with keys and
values), ``vocab_parallel_embedding.py``, and ``fused_moe``.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from math import prod

from appliance.config.layout import LayoutConfig
from appliance.planner.model_config import MAX_EXPERTS, Architecture
from appliance.planner.safetensors_header import FLOATS, TensorInfo, bytes_of

# Tensors that vLLM keeps in float32, whatever their type in the checkpoint.
_FLOAT32_NAMES = ("e_score_correction_bias", "A_log")

Rank = tuple[int, int, int]
"""The coordinates of a rank in its layout: pipeline stage, tensor-parallel rank, data-parallel copy."""


class ShardRule(StrEnum):
    """Which part of a tensor a rank holds.

    A share of the outputs or of the inputs; a share of the KV heads, or a copy if there are fewer heads than ranks;
    such a share together with that of the queries; a share of the rows, padded to a multiple of 64; or all of it.
    """

    COLUMN = "column"
    ROW = "row"
    KEYS = "keys"
    FUSED = "fused"
    VOCABULARY = "vocabulary"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Equal tensors of one layer; `name` and `dtype` are those of one of them.

    `layer` is None outside of the language model's layers. `experts` are those that have `count` tensors of this
    `shape` each; without experts there are `count` in all.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    rule: ShardRule
    layer: int | None
    experts: Sequence[int]
    count: int

    @property
    def elements(self) -> int:
        """Number of elements of all tensors."""
        return prod(self.shape) * self.count * (len(self.experts) or 1)


# The number of a layer or an expert in a name.
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks?|layer)\.(\d+)\.")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_ALL_EXPERTS = re.compile(r"\.experts\.[^.\d]")
_MULTIMODAL = re.compile(r"(?:^|\.)(?:visual|vision_tower|vision_model|audio_tower|multi_modal_projector)\.")

# Patterns of names without their ending `weight`, `bias`, `scales` and the like; the first that matches counts.
_RULES: Mapping[ShardRule, str] = {
    ShardRule.VOCABULARY: r"(embed_tokens|wte|tok_embeddings|word_embeddings|lm_head|embed_out|embed_in"
    r"|embeddings\.(position|token_type)_embeddings)$",
    ShardRule.FUSED: r"(qkv_proj|query_key_value|c_attn|Wqkv)$",
    ShardRule.KEYS: r"(k_proj|v_proj|key|value|k_lin|v_lin)$",
    ShardRule.COLUMN: r"(q_proj|query|q_lin|q_b_proj|kv_b_proj|gate_proj|up_proj|gate_up_proj|fc1|c_fc|w1|w3|wi|Wi|lin1"
    r"|fc11|fc12|dense_h_to_4h|intermediate\.dense)$",
    ShardRule.ROW: r"(o_proj|out_proj|out_lin|down_proj|fc2|c_proj|w2|wo|Wo|lin2|dense_4h_to_h|self_attention\.dense"
    r"|attention\.dense|output\.dense)$",
}

# Tensors of a checkpoint that vLLM does not load: old buffers, the order of groups, training heads.
_UNUSED = re.compile(
    r"(\.g_idx|rotary_emb\.inv_freq|position_ids|masked_bias|\.attn\.bias|num_batches_tracked)$|^(cls\.|mtp\.|model\.mtp\.)"
)

# What follows the name of a layer.
_ENDING = re.compile(
    r"(?:\.(?:weight|bias)(?:_\w+)?|\.(?:q?scales?|qweight|qzeros|\w*scale\w*)|_bias|_blocks|_scales)$"
)


def group_tensors(tensors: Sequence[TensorInfo], model: Architecture) -> list[TensorGroup]:
    """Group the tensors that vLLM loads, so that planning a layout visits a few groups per layer, not each tensor."""
    samples: dict[object, TensorInfo] = {}
    counts: defaultdict[object, Counter[int | None]] = defaultdict(Counter)
    for tensor in tensors:
        layer, expert = _layer(tensor.name), _EXPERT.search(tensor.name)
        # Layers past the last are for multi-token prediction, a model of its own (DeepSeek-V3 report, section 2.2).
        if layer is not None and layer >= model.layers:
            continue
        key = (_NUMBER.sub("0", tensor.name), tensor.dtype, tensor.shape, layer)
        samples.setdefault(key, tensor)
        counts[key][int(expert[1]) if expert else None] += 1
    loaded = [(tensor, counts[key]) for key, tensor in samples.items() if _is_loaded(tensor.name, model)]
    return [group for tensor, by_expert in loaded for group in _groups(tensor, by_expert)]


def _groups(tensor: TensorInfo, counts: Counter[int | None]) -> list[TensorGroup]:
    """Return a group for each number of tensors that an expert has."""
    name, dtype, shape, layer = tensor.name, tensor.dtype, tensor.shape, _layer(tensor.name)
    rule = _rule(_NUMBER.sub("0", name))
    if _ALL_EXPERTS.search(name) and len(shape) > 1 and 0 < shape[0] <= MAX_EXPERTS:
        # The first dimension is the experts of a layer.
        return [TensorGroup(name, dtype, shape[1:], rule, layer, range(shape[0]), counts.total())]
    experts: defaultdict[int, list[int]] = defaultdict(list)
    for expert, count in counts.items():
        experts[count] += [] if expert is None else [expert]
    return [TensorGroup(name, dtype, shape, rule, layer, tuple(sorted(experts[count])), count) for count in experts]


def _layer(name: str) -> int | None:
    """Return the number of a layer of the language model; None if the tensor belongs to none."""
    found = None if _MULTIMODAL.search(name) else _LAYER.search(name)
    return None if found is None else int(found[1])


def _is_loaded(name: str, model: Architecture) -> bool:
    if _UNUSED.search(name) or (model.is_tied and re.search(r"(^|\.)lm_head\.weight$", name)):
        return False
    # vLLM does not load the pooler of an encoder that embeds.
    is_embedder = model.is_encoder and not model.name.endswith("Classification")
    return not (is_embedder and re.search(r"(^|\.)pooler\.", name))


# Without the numbers of layers and experts, a model has few names.
@lru_cache(maxsize=4096)
def _rule(name: str) -> ShardRule:
    if name.endswith((".sinks", ".attention_sink_bias")):
        return ShardRule.COLUMN
    bare = _ENDING.sub("", name)
    found = next((rule for rule, pattern in _RULES.items() if re.search(pattern, bare)), ShardRule.WHOLE)
    is_row_bias = found is ShardRule.ROW and name.endswith(("bias", "bias_ih"))
    # Every rank holds the indexer of sparse attention (``Indexer`` in vLLM's deepseek_v2).
    return ShardRule.WHOLE if is_row_bias or ".indexer." in name else found


def weight_bytes_by_rank(
    groups: list[TensorGroup], model: Architecture, layout: LayoutConfig, dtype: str
) -> Mapping[Rank, int]:
    """Return the bytes of weights of each rank; `dtype` is the model's, to which float tensors are converted."""
    ends = stage_ends(model.layers, layout.pipeline_parallel)
    common = [0] * len(ends)
    by_experts = [Counter[Sequence[int]]() for _ in ends]
    for group in groups:
        size = _rank_bytes(group, model, layout, dtype)
        for stage in _stages_of(group, ends, model):
            if group.experts:
                by_experts[stage][group.experts] += size
            else:
                common[stage] += size
    # Each rank has contiguous experts; the first ranks take the rest (``determine_expert_map`` of vLLM).
    each, over = divmod(model.experts, layout.tensor_parallel * layout.data_parallel)
    found = {}
    for stage, sizes in enumerate(by_experts):
        experts: Counter[int] = Counter()
        for members, size in sizes.items():
            experts.update(dict.fromkeys(members, size))
        for data in range(layout.data_parallel):
            for tensor in range(layout.tensor_parallel):
                rank = data * layout.tensor_parallel + tensor
                share = range(rank * each + min(rank, over), (rank + 1) * each + min(rank + 1, over))
                local = share if layout.expert_parallel else experts
                found[stage, tensor, data] = common[stage] + sum(experts[expert] for expert in local)
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


def _stages_of(group: TensorGroup, ends: list[int], model: Architecture) -> Collection[int]:
    last = len(ends) - 1
    if group.layer is not None:
        return (next((number for number, end in enumerate(ends) if group.layer < end), last),)
    if group.rule is ShardRule.VOCABULARY and "lm_head" not in group.name and "embed_out" not in group.name:
        # Tied embeddings are also the output layer, in the last stage.
        return {0, last} if model.is_tied else (0,)
    is_multimodal = any(word in group.name for word in ("visual", "vision", "audio", "projector"))
    return (0,) if is_multimodal else (last,)


def _rank_bytes(group: TensorGroup, model: Architecture, layout: LayoutConfig, dtype: str) -> int:
    """Return the bytes of a group that a rank holds, of each expert if it has some."""
    ranks = layout.tensor_parallel
    if group.experts:
        # Without expert parallelism, experts are sharded over data-parallel copies too (``FusedMoEParallelConfig``).
        ranks = 1 if layout.expert_parallel else ranks * layout.data_parallel
    return bytes_of(_rank_elements(group, ranks, model), _loaded_dtype(group, model, dtype)) * group.count


def _loaded_dtype(group: TensorGroup, model: Architecture, dtype: str) -> str:
    """Return the type after loading: floats become the model's dtype, scales float32 unless weights are packed."""
    if group.name.endswith(_FLOAT32_NAMES):
        return "F32"
    if group.dtype not in FLOATS:
        return group.dtype
    has_scales = model.quantization is not None and not model.quantization.has_packs
    return "F32" if has_scales and "scale" in group.name.rpartition(".")[2] else dtype


def _rank_elements(group: TensorGroup, ranks: int, model: Architecture) -> int:
    """Return how many elements of one tensor a rank holds."""
    shape = group.shape
    if group.rule is ShardRule.VOCABULARY and shape:
        return -(-shape[0] // 64) * 64 // ranks * prod(shape[1:])
    dimension = _sharded_dimension(group, model)
    if dimension is None or not shape[dimension]:
        return prod(shape)
    size, parts = shape[dimension], ranks
    heads = local_heads(model.kv_heads, ranks)
    if group.rule is ShardRule.KEYS:
        size, parts = size * heads, model.kv_heads
    elif group.rule is ShardRule.FUSED:
        size, parts = size * (model.heads // ranks + 2 * heads), model.heads + 2 * model.kv_heads
    return -(-size // parts) * (prod(shape) // shape[dimension])


def _sharded_dimension(group: TensorGroup, model: Architecture) -> int | None:
    """Return the dimension that is sharded; None if every rank holds the whole tensor, such as a scale."""
    shape, ending, is_row = group.shape, group.name.rpartition(".")[2], group.rule is ShardRule.ROW
    if group.rule is ShardRule.WHOLE or not shape or (len(shape) == 1 and is_row):
        return None
    if ending in ("weight_shape", "weight_scale_2", "weight_global_scale"):
        return None
    is_transposed = model.quantization is not None and model.quantization.is_transposed
    if len(shape) > 1 and is_transposed and ending in ("qweight", "qzeros", "scales"):
        return 0 if is_row else 1
    dimension = 1 if is_row else 0
    return None if shape[dimension] == 1 else dimension
