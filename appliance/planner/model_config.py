"""The architecture of a model, read from its config.json: sizes, experts, attention, quantization, longest text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from appliance.planner.tensor_info import TORCH_DTYPES

# Kinds of models without a KV cache.
_ENCODERS = frozenset(
    {"bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "mpnet", "nomic_bert", "modernbert", "new"}
)

# Keys of the number of experts (``ModelArchConfigConvertorBase.get_num_experts`` of vLLM).
_EXPERT_KEYS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")

# Twenty times the layers of any known model; the work of planning grows with them.
_MAX_LAYERS = 4096

MAX_EXPERTS = 16_384
"""Limit on the experts of a layer, for the same reason."""

# Characters of a value in an error message.
_MAX_SHOWN = 60

# Limit on any other number, such as the width of a layer or the vocabulary.
_MAX_NUMBER = 2**31

HfConfig = Mapping[str, Any]
"""A `config.json`; Any: JSON values."""


# Keys of the longest text (``derive_max_model_len_and_key`` of vLLM); the smallest value counts.
_LENGTH_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)

# Kinds of RoPE scaling that the keys above already include.
_INCLUDED_SCALING = frozenset({"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"})

# A thousand times the factor of any known model.
_MAX_ROPE_FACTOR = 2**20


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


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a checkpoint is quantized, as far as it restricts how its tensors are sharded.

    `group` inputs (and `outputs` outputs) of a layer share a scale; 0 if that does not matter.
    `has_packs`: several weights are packed into one 32-bit number.
    """

    method: str
    group: int = 0
    outputs: int = 0
    has_packs: bool = False

    @property
    def is_transposed(self) -> bool:
        """Whether the first dimension of packed weights is the input, as in GPTQ and AWQ."""
        return self.method.startswith(("gptq", "awq"))


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes of a model; 0 means that the model has no such thing, None that the config does not say.

    `text` is the config of the language model, which is a part of the file for multimodal models.
    `max_length` is the longest text in tokens, `default_length` vLLM's default for `max_model_len`.
    """

    name: str
    kind: str
    text: HfConfig
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    intermediate: int
    experts: int
    expert_intermediate: int
    is_tied: bool
    is_encoder: bool
    dtype: str | None
    max_length: int | None
    default_length: int | None
    quantization: Quantization | None
    attention: tuple[Attention, ...]
    sparse: tuple[bool, ...]
    """Whether each layer is a mixture of experts."""

    @property
    def is_latent(self) -> bool:
        """Whether it caches one latent vector for all heads (multi-head latent attention, MLA)."""
        return is_latent(self.kind, self.text)

    @property
    def padded_vocabulary(self) -> int:
        """Rows of the embeddings as vLLM pads them (``pad_vocab_size``)."""
        return -(-self.vocabulary // 64) * 64


def architecture_of(config: HfConfig) -> Architecture:
    """Read the architecture from a `config.json`.

    Raises:
        ValueError: a required number is missing or not a number.
    """
    name = _name(config)
    text = config.get("text_config") or config.get("llm_config") or config
    kind = str(text.get("model_type") or config.get("model_type") or "")
    layers = _number(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers", maximum=_MAX_LAYERS)
    heads = _number(text, "num_attention_heads", "n_head", "n_heads")
    hidden = _number(text, "hidden_size", "n_embd", "d_model", "dim")
    kv_heads = _kv_heads(text) or heads
    head_dim = _first(text, "head_dim") or hidden // heads
    is_encoder = kind in _ENCODERS or text.get("is_causal") is False
    expert_intermediate = _first(text, "moe_intermediate_size", "expert_ffn_hidden_size")
    intermediate = _first(text, "intermediate_size", "n_inner", "ffn_dim", "hidden_dim", "ffn_hidden_size")
    if kind == "llama4_text":
        expert_intermediate, intermediate = intermediate, _first(text, "intermediate_size_mlp") or intermediate
    experts = _first(text, *_EXPERT_KEYS, maximum=MAX_EXPERTS)
    dense = frozenset(text.get("mlp_only_layers") or ())
    return Architecture(
        name=name or kind,
        kind=kind,
        text=text,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=_first(text, "vocab_size"),
        intermediate=intermediate or 4 * hidden,
        experts=experts,
        expert_intermediate=expert_intermediate or intermediate,
        is_tied=_is_tied(kind, text, config),
        is_encoder=is_encoder,
        dtype=_dtype(config, text),
        max_length=max_length_of(kind, text),
        default_length=default_length_of(kind, text),
        quantization=quantization_of(config, text),
        attention=() if is_encoder else attention_of(kind, text, layers, kv_heads, head_dim),
        sparse=tuple(bool(experts) and _is_sparse(kind, text, layer, dense) for layer in range(layers)),
    )


def _name(config: HfConfig) -> str:
    """Return the first of `architectures`, or an empty string."""
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise ValueError(f"architectures is {_shown(names)}; must be a list of names")
    return names[0] if names else ""


def _kv_heads(text: HfConfig) -> int:
    """Return the number of KV heads; 0 if it equals the number of query heads (``get_total_num_kv_heads`` of vLLM)."""
    if text.get("multi_query") and not text.get("new_decoder_architecture") and "multi_query_group_num" not in text:
        return 1
    return _first(text, "num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")


def _is_sparse(kind: str, text: HfConfig, layer: int, dense: frozenset[int]) -> bool:
    """Whether a layer of a model with experts is a mixture of experts."""
    if layer < (text.get("first_k_dense_replace") or 0) or layer in dense:
        return False
    step = text.get("decoder_sparse_step") or text.get("interleave_moe_layer_step") or text.get("moe_layer_freq") or 1
    if isinstance(step, list):
        return bool(step[layer])
    return (layer + (kind != "deepseek_v3")) % int(step) == 0


def _is_tied(kind: str, text: HfConfig, config: HfConfig) -> bool:
    """Whether input and output share their embeddings; the default is that of transformers for the kind of model."""
    written = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    if written is not None:
        return bool(written)
    return kind.startswith(("gemma", "gpt2", "cohere"))


def _dtype(config: HfConfig, text: HfConfig) -> str | None:
    written = (each.get(key) for each in (config, text) for key in ("dtype", "torch_dtype"))
    return TORCH_DTYPES.get(str(next(filter(None, written), "")).removeprefix("torch."))


def _number(config: HfConfig, *keys: str, maximum: int = _MAX_NUMBER) -> int:
    found = _first(config, *keys, maximum=maximum)
    if not found:
        written = next((key for key in keys if config.get(key) is not None), None)
        fault = f"no {keys[0]}" if written is None else f"{written} is {_shown(config[written])}"
        raise ValueError(f"{fault}; must be between 1 and {maximum}")
    return found


def _first(config: HfConfig, *keys: str, maximum: int = _MAX_NUMBER) -> int:
    for key in keys:
        value = config.get(key)
        # A list has one number per layer; the largest counts.
        numbers = value if isinstance(value, list) else [value]
        if value is None:
            continue
        if not all(type(each) is int and 0 <= each <= maximum for each in numbers):
            raise ValueError(f"{key} is {_shown(value)}; must be between 1 and {maximum}")
        if number := max(numbers, default=0):
            return int(number)
    return 0


def _shown(value: object) -> str:
    """Return a value of the file as an error message shows it."""
    if type(value) is int and abs(value) >= 2**64:
        return "a number of more than 64 bits"
    text = json.dumps(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def max_length_of(kind: str, text: Mapping[str, Any]) -> int | None:  # Any: JSON values
    """Return the longest text in tokens, with RoPE scaling; None if the config does not say
    (``_get_and_verify_max_len`` of vLLM 0.32).
    """
    written = min((text[key] for key in _LENGTH_KEYS if isinstance(text.get(key), int)), default=None)
    if written is None or "gemma3" in kind:
        return written
    stretched = [each.get("factor") for each in _ropes(text) if _rope_type(each) not in _INCLUDED_SCALING]
    factor = next((each for each in reversed(stretched) if each is not None), 1)
    if type(factor) not in (int, float) or not 0 < factor < _MAX_ROPE_FACTOR:
        raise ValueError(f"the factor of rope_scaling must be a number between 0 and {_MAX_ROPE_FACTOR}")
    return int(written * factor)


def default_length_of(kind: str, text: Mapping[str, Any]) -> int | None:  # Any: JSON values
    """Return vLLM's default for `max_model_len`; None if the config does not say."""
    original = text.get("original_max_position_embeddings")
    # LongRoPE costs quality for short texts, so vLLM defaults to the original length.
    if isinstance(original, int) and any(_rope_type(each) == "longrope" for each in _ropes(text)):
        return original
    return max_length_of(kind, text)


def _ropes(text: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:  # Any: JSON values
    """Return the RoPE settings: one, or one per type of layer."""
    settings = text.get("rope_parameters") or text.get("rope_scaling") or {}
    by_layer_type = [each for each in settings.values() if isinstance(each, Mapping)]
    yield from by_layer_type or [settings]


def _rope_type(rope: Mapping[str, Any]) -> str:  # Any: JSON values
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    return "longrope" if kind == "su" else kind


def quantization_of(*configs: Mapping[str, Any]) -> Quantization | None:  # Any: JSON values
    """Return the quantization of the first config that has one; None if there is none."""
    written = (each.get(key) for each in configs for key in ("quantization_config", "compression_config"))
    settings = next(filter(None, written), None)
    if settings is None:
        return None
    if not isinstance(settings, Mapping):
        raise ValueError("quantization_config is no mapping; must be one, or left out")
    method = str(settings.get("quant_method") or settings.get("producer", {}).get("name") or "unknown").lower()
    # FP8 blocks are (outputs, inputs) (``Fp8LinearMethod`` of vLLM).
    if block := settings.get("weight_block_size"):
        return Quantization(method, group=int(block[1]), outputs=int(block[0]))
    if method.startswith(("gptq", "awq")):
        return Quantization(method, group=max(0, int(settings.get("group_size") or 0)), has_packs=True)
    if method.startswith("compressed"):
        return Quantization(method, group=_group(settings), has_packs=settings.get("format") == "pack-quantized")
    return Quantization(method)


def _group(settings: Mapping[str, Any]) -> int:  # Any: JSON values
    """Return the group size of compressed-tensors weights."""
    groups = (settings.get("config_groups") or {}).values()
    sizes = ((each.get("weights") or {}).get("group_size") for each in groups if isinstance(each, Mapping))
    return next((size for size in sizes if isinstance(size, int) and size > 0), 0)


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
    types = text.get("layer_types") or text.get("layers_block_type") or _layer_types(kind, text, layers)
    kept = {
        "sliding_attention": Attention(AttentionKind.SLIDING, kv_heads, 2 * head_dim, text.get("sliding_window") or 0),
        "chunked_attention": Attention(
            AttentionKind.CHUNKED, kv_heads, 2 * head_dim, text.get("attention_chunk_size") or 0
        ),
    }
    state = Attention(AttentionKind.STATE, 1, _state_elements(text))
    found = [state if each in _STATE_LAYERS else kept.get(each, full) for each in types[:layers]]
    return tuple(
        each if each.window or each.kind not in (AttentionKind.SLIDING, AttentionKind.CHUNKED) else full
        for each in found
    )


def is_latent(kind: str, text: Mapping[str, Any]) -> bool:  # Any: JSON values
    """Whether vLLM runs the model with multi-head latent attention (MLA)."""
    return kind in _LATENT and text.get("kv_lora_rank") is not None


def _layer_types(kind: str, text: Mapping[str, Any], layers: int) -> list[str]:  # Any: JSON values
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


def _state_elements(text: Mapping[str, Any]) -> int:  # Any: JSON values
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
