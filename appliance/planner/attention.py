"""What each layer of a model keeps in its cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

# ``ModelArchConfigConvertorBase.is_deepseek_mla`` of vLLM 0.32.
_LATENT = frozenset(
    {
        "axk1",
        "bailing_hybrid",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "kimi_k2",
        "kimi_linear",
        "longcat_flash",
        "pangu_ultra_moe",
    }
)

# Types of layers that keep a state of constant size instead of tokens.
_STATE_LAYERS = frozenset({"linear_attention", "mamba", "conv", "recurrent", "hybrid"})

# Every Nth layer has full attention, if the config does not say.
_FULL_ATTENTION_INTERVAL: Mapping[str, int] = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}


class AttentionKind(StrEnum):
    """What a layer keeps: all tokens, the last tokens, those of one chunk, a latent vector per token, or a state."""

    FULL = "full"
    SLIDING = "sliding"
    CHUNKED = "chunked"
    LATENT = "latent"
    STATE = "state"


@dataclass(frozen=True, slots=True)
class Attention:
    """The cache of one layer.

    `elements` is the size of a token in one head, keys and values together; for a state, its whole size.
    `window` is how many tokens are kept at most; 0 means all.
    """

    kind: AttentionKind
    heads: int
    elements: int
    window: int = 0


def attention_of(
    kind: str,
    text: Mapping[str, Any],  # Any: JSON values
    layers: int,
    kv_heads: int,
    head_dim: int,
) -> tuple[Attention, ...]:
    """Return the cache of each layer, in order; `kind` is the model_type."""
    if is_latent(kind, text):
        # The rotary part of the keys is stored beside the latent vector (``MLAAttentionSpec``).
        elements = text["kv_lora_rank"] + text.get("qk_rope_head_dim", 0)
        return (Attention(AttentionKind.LATENT, 1, elements),) * layers
    full = Attention(AttentionKind.FULL, kv_heads, 2 * head_dim)
    types = text.get("layer_types") or text.get("layers_block_type") or _types(kind, text, layers)
    kept = {
        "sliding_attention": Attention(AttentionKind.SLIDING, kv_heads, 2 * head_dim, text.get("sliding_window") or 0),
        "chunked_attention": Attention(
            AttentionKind.CHUNKED, kv_heads, 2 * head_dim, text.get("attention_chunk_size") or 0
        ),
    }
    state = Attention(AttentionKind.STATE, 1, _state(text))
    found = [state if each in _STATE_LAYERS else kept.get(each, full) for each in types[:layers]]
    return tuple(
        each if each.window or each.kind not in (AttentionKind.SLIDING, AttentionKind.CHUNKED) else full
        for each in found
    )


def is_latent(kind: str, text: Mapping[str, Any]) -> bool:  # Any: JSON values
    """Whether vLLM runs the model with multi-head latent attention (MLA)."""
    return kind in _LATENT and text.get("kv_lora_rank") is not None


def _types(kind: str, text: Mapping[str, Any], layers: int) -> list[str]:  # Any: JSON values
    """Return the types of the layers, if the config leaves them to the model's code."""
    if kind == "llama4_text":
        step = text.get("no_rope_layer_interval") or 4
        return ["full_attention" if (layer + 1) % step == 0 else "chunked_attention" for layer in range(layers)]
    if every := text.get("sliding_window_pattern") or _FULL_ATTENTION_INTERVAL.get(kind):
        return ["full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in range(layers)]
    if every := text.get("full_attention_interval"):
        return ["full_attention" if (layer + 1) % every == 0 else "linear_attention" for layer in range(layers)]
    is_sliding = text.get("sliding_window") and text.get("use_sliding_window", True)
    return ["sliding_attention" if is_sliding else "full_attention"] * layers


def _state(text: Mapping[str, Any]) -> int:  # Any: JSON values
    """Return the size of the state of a gated delta net or Mamba 2 layer (``MambaStateShapeCalculator`` of vLLM)."""
    if heads := text.get("linear_num_value_heads"):
        keys = text["linear_num_key_heads"] * text["linear_key_head_dim"]
        values = heads * text["linear_value_head_dim"]
        kernel = text.get("linear_conv_kernel_dim", 4) - 1
        return int((2 * keys + values) * kernel + values * text["linear_key_head_dim"])
    heads = text.get("mamba_n_heads") or text.get("mamba_num_heads") or 0
    width = text.get("mamba_d_head") or text.get("mamba_head_dim") or 0
    if not isinstance(width, int):
        width = 0
    state = text.get("mamba_d_state") or text.get("ssm_state_size") or 0
    groups = text.get("mamba_n_groups") or text.get("n_groups") or 1
    kernel = (text.get("mamba_d_conv") or text.get("conv_kernel") or 4) - 1
    return int((heads * width + 2 * groups * state) * kernel + heads * width * state)
