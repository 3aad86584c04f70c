"""How vLLM cuts one tensor over the ranks of a tensor-parallel group, by the tensor's name.

The rules are those of vLLM 0.32: ``model_executor/layers/linear.py`` (column and row parallel, queries with keys and
values), ``vocab_parallel_embedding.py``, and ``fused_moe``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from appliance.planner.model_config import MOST_EXPERTS, Architecture
from appliance.planner.tensor_info import TensorInfo


class ShardRule(StrEnum):
    """What of a tensor a rank holds."""

    COLUMN = "column"
    """A share of the outputs."""

    KEYS = "keys"
    """A share of the heads of keys or values, and a copy where there are fewer heads than ranks."""

    FUSED = "fused"
    """Queries, keys and values in one: a share of the queries, and of the keys and values as above."""

    ROW = "row"
    """A share of the inputs."""

    VOCABULARY = "vocabulary"
    """A share of the rows, after they were padded to a multiple of 64."""

    WHOLE = "whole"
    """All of it."""


@dataclass(frozen=True, slots=True)
class ShardPart:
    """One tensor, and how it is cut; `expert` is the number of the one it belongs to, or None.

    A tensor that holds all experts of a layer has them in its first dimension, and `holds_experts`.
    """

    tensor: TensorInfo
    cut: ShardRule
    layer: int | None
    expert: int | None = None
    holds_experts: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that are alike: `part` is one of them, and `count` how many there are of each of the `experts`.

    They differ in nothing but the expert they belong to; `experts` is empty where they belong to none.
    """

    part: ShardPart
    experts: tuple[int, ...]
    count: int


# The number of a layer or an expert.
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks?|layer)\.(\d+)\.")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_ALL_EXPERTS = re.compile(r"\.experts\.[^.\d]")
_SEEING = re.compile(r"(?:^|\.)(?:visual|vision_tower|vision_model|audio_tower|multi_modal_projector)\.")

# The layer's own name, before `weight`, `bias`, `scales` and the like.
_NAMES: tuple[tuple[ShardRule, re.Pattern[str]], ...] = (
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

# What a checkpoint may hold and no rank loads: buffers of older versions, the order of groups, heads for training.
_UNUSED = re.compile(
    r"(\.g_idx|rotary_emb\.inv_freq|position_ids|masked_bias|\.attn\.bias|num_batches_tracked)$|^(cls\.|mtp\.|model\.mtp\.)"
)

# A bias on all experts, and what follows a layer's name.
_ENDING = re.compile(
    r"(?:\.(?:weight|bias)(?:_\w+)?|\.(?:q?scales?|qweight|qzeros|\w*scale\w*)|_bias|_blocks|_scales)$"
)


def parts(tensors: list[TensorInfo], model: Architecture) -> list[ShardPart]:
    """The tensors that are loaded, each with its cut."""
    named = ((tensor, _NUMBER.sub("0", tensor.name)) for tensor in tensors)
    return [_part(tensor, plain) for tensor, plain in named if _is_loaded(tensor.name, plain, model)]


def grouped(loaded: list[ShardPart]) -> list[Group]:
    """The parts by what is alike, a few for each layer: a layout is then counted by these and not by each tensor."""
    found: dict[object, tuple[ShardPart, Counter[int | None]]] = {}
    for part in loaded:
        tensor = part.tensor
        plain = _NUMBER.sub("0", tensor.name)
        key = (plain, tensor.dtype, tensor.shape, part.layer, part.holds_experts, part.expert is None)
        alike = found.get(key)
        if alike is None:
            alike = found[key] = (part, Counter())
        alike[1][part.expert] += 1
    return [group for part, counts in found.values() for group in _groups(part, counts)]


def _groups(part: ShardPart, counts: Counter[int | None]) -> Iterator[Group]:
    for count in set(counts.values()):
        experts = (expert for expert, each in counts.items() if each == count and expert is not None)
        yield Group(part, tuple(sorted(experts)), count)


def _is_loaded(name: str, plain: str, model: Architecture) -> bool:
    if _is_unused(plain) or (model.is_tied and _is_head(plain)):
        return False
    # Layers past the last predict several tokens at once, and are another model's (DeepSeek-V3's report, section 2.2).
    layer = _layer(name, plain)
    # vLLM's encoders pool by themselves; what is written after the pooler is none of theirs.
    is_pooler = model.is_encoder and ("pooler." in name) and re.search(r"(^|\.)pooler\.", name) is not None
    return not (layer is not None and layer >= model.layers) and not (is_pooler and _is_embedder(model))


def _layer(name: str, plain: str) -> int | None:
    """The number of the layer of the language model that a tensor belongs to; None where it belongs to none."""
    found = None if _is_seeing(plain) else _LAYER.search(name)
    return None if found is None else int(found[1])


# Layers and experts differ in their numbers alone, so a model has few plain names.
@lru_cache(maxsize=4096)
def _is_unused(plain: str) -> bool:
    return _UNUSED.search(plain) is not None


@lru_cache(maxsize=4096)
def _is_head(plain: str) -> bool:
    return re.search(r"(^|\.)lm_head\.weight$", plain) is not None


@lru_cache(maxsize=4096)
def _is_seeing(plain: str) -> bool:
    return _SEEING.search(plain) is not None


@lru_cache(maxsize=4096)
def _holds_experts(plain: str) -> bool:
    return _ALL_EXPERTS.search(plain) is not None


def _is_embedder(model: Architecture) -> bool:
    return not model.name.endswith("Classification")


def _part(tensor: TensorInfo, plain: str) -> ShardPart:
    expert = _EXPERT.search(tensor.name)
    return ShardPart(
        tensor,
        _cut(plain),
        _layer(tensor.name, plain),
        int(expert[1]) if expert else None,
        holds_experts=_holds_experts(plain) and len(tensor.shape) > 1 and tensor.shape[0] <= MOST_EXPERTS,
    )


@lru_cache(maxsize=4096)
def _cut(name: str) -> ShardRule:
    bare = _ENDING.sub("", name)
    if name.endswith((".sinks", ".attention_sink_bias")):
        return ShardRule.COLUMN
    found = next((cut for cut, pattern in _NAMES if pattern.search(bare)), ShardRule.WHOLE)
    is_row_bias = found is ShardRule.ROW and name.endswith(("bias", "bias_ih"))
    # The indexer of sparse attention is on every rank (``Indexer`` of vLLM's deepseek_v2).
    return ShardRule.WHOLE if is_row_bias or ".indexer." in name else found
