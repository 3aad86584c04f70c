"""The architecture of a model, read from its config.json: sizes, experts, attention, quantization, longest text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from appliance.planner.safetensors_header import TORCH_DTYPES

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

# Limit on any other number, such as the width of a layer or the vocabulary.
_MAX_NUMBER = 2**31

# Characters of a value in an error message.
_MAX_SHOWN = 60

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
_INCLUDED_SCALING = frozenset({"longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"})

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


class Architecture:
    """The sizes of a model; 0 means that the model has no such thing, None that the config does not say.

    Raises:
        ValueError: a required number of the `config.json` is missing or not a number.
    """

    def __init__(self, config: HfConfig) -> None:
        text = config.get("text_config") or config.get("llm_config") or config
        self.text: HfConfig = text
        """The config of the language model, which is a part of the file for multimodal models."""
        self.kind = str(text.get("model_type") or config.get("model_type") or "")
        names = config.get("architectures") or []
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            raise ValueError(f"architectures is {_shown(names)}; must be a list of names")
        self.name: str = next(iter(names), "") or self.kind
        self.layers = _required(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers", maximum=_MAX_LAYERS)
        self.heads = _required(text, "num_attention_heads", "n_head", "n_heads")
        self.hidden = _required(text, "hidden_size", "n_embd", "d_model", "dim")
        self.kv_heads = _kv_heads(text) or self.heads
        self.head_dim = _first(text, "head_dim") or self.hidden // self.heads
        self.vocabulary = _first(text, "vocab_size")
        self.is_encoder = self.kind in _ENCODERS or text.get("is_causal") is False
        self.is_latent = self.kind in _LATENT and text.get("kv_lora_rank") is not None
        """One latent vector is cached for all heads (multi-head latent attention, MLA)."""
        experts = _first(text, "moe_intermediate_size", "expert_ffn_hidden_size")
        width = _first(text, "intermediate_size", "n_inner", "ffn_dim", "hidden_dim", "ffn_hidden_size")
        if self.kind == "llama4_text":
            experts, width = width, _first(text, "intermediate_size_mlp") or width
        self.intermediate = width or 4 * self.hidden
        self.expert_intermediate = experts or width
        self.experts = _first(text, *_EXPERT_KEYS, maximum=MAX_EXPERTS)
        is_tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
        # The default is that of transformers for the kind of model.
        self.is_tied = self.kind.startswith(("gemma", "gpt2", "cohere")) if is_tied is None else bool(is_tied)
        dtypes = (each.get(key) for each in (config, text) for key in ("dtype", "torch_dtype"))
        self.dtype = TORCH_DTYPES.get(str(next(filter(None, dtypes), "")).removeprefix("torch."))
        self.max_length, self.default_length = _lengths(self.kind, text)
        """The longest text in tokens, and vLLM's default for `max_model_len`."""
        self.quantization = _quantization(config, text)
        self.attention = () if self.is_encoder else _attention(self)
        dense = frozenset(text.get("mlp_only_layers") or ())
        self.sparse = [bool(self.experts) and _is_sparse(self, layer, dense) for layer in range(self.layers)]
        """Whether each layer is a mixture of experts."""

    @property
    def padded_vocabulary(self) -> int:
        """Rows of the embeddings as vLLM pads them (``pad_vocab_size``)."""
        return -(-self.vocabulary // 64) * 64


def _kv_heads(text: HfConfig) -> int:
    """Return the number of KV heads; 0 if it equals the number of query heads (``get_total_num_kv_heads`` of vLLM)."""
    if text.get("multi_query") and not text.get("new_decoder_architecture") and "multi_query_group_num" not in text:
        return 1
    return _first(text, "num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")


def _is_sparse(model: Architecture, layer: int, dense: frozenset[int]) -> bool:
    """Whether a layer of a model with experts is a mixture of experts."""
    text = model.text
    if layer < (text.get("first_k_dense_replace") or 0) or layer in dense:
        return False
    step = text.get("decoder_sparse_step") or text.get("interleave_moe_layer_step") or text.get("moe_layer_freq") or 1
    if isinstance(step, list):
        return bool(step[layer])
    return (layer + (model.kind != "deepseek_v3")) % int(step) == 0


def _required(config: HfConfig, *keys: str, maximum: int = _MAX_NUMBER) -> int:
    if found := _first(config, *keys, maximum=maximum):
        return found
    written = next((key for key in keys if config.get(key) is not None), None)
    fault = f"no {keys[0]}" if written is None else f"{written} is {_shown(config[written])}"
    raise ValueError(f"{fault}; must be between 1 and {maximum}")


def _first(config: HfConfig, *keys: str, maximum: int = _MAX_NUMBER) -> int:
    """Return the first number that is not 0; of a list, which has one for each layer, the largest."""
    for key in keys:
        if (value := config.get(key)) is None:
            continue
        numbers = value if isinstance(value, list) else [value]
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


def _lengths(kind: str, text: HfConfig) -> tuple[int | None, int | None]:
    """Return the longest text in tokens, with RoPE scaling, and the default (``_get_and_verify_max_len`` of vLLM)."""
    longest = min((text[key] for key in _LENGTH_KEYS if isinstance(text.get(key), int)), default=None)
    if longest is not None and "gemma3" not in kind:
        factors = [each.get("factor") for rope_type, each in _ropes(text) if rope_type not in _INCLUDED_SCALING]
        factor = next((each for each in reversed(factors) if each is not None), 1)
        if type(factor) not in (int, float) or not 0 < factor < _MAX_ROPE_FACTOR:
            raise ValueError(f"the factor of rope_scaling must be a number between 0 and {_MAX_ROPE_FACTOR}")
        longest = int(longest * factor)
    original = text.get("original_max_position_embeddings")
    # LongRoPE costs quality for short texts, so vLLM defaults to the original length.
    is_long = isinstance(original, int) and any(rope_type == "longrope" for rope_type, _ in _ropes(text))
    return longest, original if is_long else longest


def _ropes(text: HfConfig) -> list[tuple[str, HfConfig]]:
    """Return the RoPE settings by their types: one, or one per type of layer."""
    settings = text.get("rope_parameters") or text.get("rope_scaling") or {}
    ropes = [each for each in settings.values() if isinstance(each, Mapping)] or [settings]
    types = [str(each.get("rope_type") or each.get("type") or "default") for each in ropes]
    return [("longrope" if kind == "su" else kind, each) for kind, each in zip(types, ropes, strict=True)]


def _quantization(*configs: HfConfig) -> Quantization | None:
    """Return the quantization of the first config that has one."""
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
        groups = (settings.get("config_groups") or {}).values()
        sizes = ((each.get("weights") or {}).get("group_size") for each in groups if isinstance(each, Mapping))
        group = next((size for size in sizes if isinstance(size, int) and size > 0), 0)
        return Quantization(method, group=group, has_packs=settings.get("format") == "pack-quantized")
    return Quantization(method)


def _attention(model: Architecture) -> Sequence[Attention]:
    """Return the cache of each layer, in order."""
    text, kv_heads, elements = model.text, model.kv_heads, 2 * model.head_dim
    if model.is_latent:
        # The rotary part of the keys is stored beside the latent vector (``MLAAttentionSpec``).
        latent = Attention(AttentionKind.LATENT, 1, text["kv_lora_rank"] + text.get("qk_rope_head_dim", 0))
        return (latent,) * model.layers
    windows = {
        "sliding_attention": (AttentionKind.SLIDING, text.get("sliding_window") or 0),
        "chunked_attention": (AttentionKind.CHUNKED, text.get("attention_chunk_size") or 0),
    }
    state = Attention(AttentionKind.STATE, 1, _state_elements(text))
    full = Attention(AttentionKind.FULL, kv_heads, elements)
    types = text.get("layer_types") or text.get("layers_block_type") or _layer_types(model)
    found = []
    for each in types[: model.layers]:
        kind, window = windows.get(each, (AttentionKind.FULL, 0))
        windowed = Attention(kind, kv_heads, elements, window) if window else full
        found.append(state if each in _STATE_LAYERS else windowed)
    return found


def _layer_types(model: Architecture) -> list[str]:
    """Return the types of the layers, if the config leaves them to the model's code."""
    text, kind = model.text, model.kind
    if kind == "llama4_text":
        every, others = text.get("no_rope_layer_interval") or 4, "chunked_attention"
    elif every := text.get("sliding_window_pattern") or _FULL_ATTENTION_INTERVAL.get(kind):
        others = "sliding_attention"
    elif every := text.get("full_attention_interval"):
        others = "linear_attention"
    else:
        is_sliding = text.get("sliding_window") and text.get("use_sliding_window", True)
        return ["sliding_attention" if is_sliding else "full_attention"] * model.layers
    return ["full_attention" if (layer + 1) % every == 0 else others for layer in range(model.layers)]


def _state_elements(text: HfConfig) -> int:
    """Return the size of the state of a gated delta net or Mamba 2 layer (``MambaStateShapeCalculator`` of vLLM)."""
    if heads := text.get("linear_num_value_heads"):
        keys = text["linear_num_key_heads"] * text["linear_key_head_dim"]
        values = heads * text["linear_value_head_dim"]
        kernel = text.get("linear_conv_kernel_dim", 4) - 1
        return int((2 * keys + values) * kernel + values * text["linear_key_head_dim"])
    heads = text.get("mamba_n_heads") or text.get("mamba_num_heads") or 0
    width = text.get("mamba_d_head") or text.get("mamba_head_dim") or 0
    # Some configs have a word here.
    width = width if isinstance(width, int) else 0
    state = text.get("mamba_d_state") or text.get("ssm_state_size") or 0
    groups = text.get("mamba_n_groups") or text.get("n_groups") or 1
    kernel = (text.get("mamba_d_conv") or text.get("conv_kernel") or 4) - 1
    return int((heads * width + 2 * groups * state) * kernel + heads * width * state)
