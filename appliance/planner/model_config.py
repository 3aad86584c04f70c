"""What a `config.json` says of a model: its sizes, its experts, what each layer caches, how it is quantized."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.planner.attention import Attention, attention_of, is_latent
from appliance.planner.max_model_len import longest_text, usual_text
from appliance.planner.quantization import Quantization, quantization_of
from appliance.planner.tensor_info import TYPES

# Models that keep no KV cache: they see the whole text at once.
_ENCODERS = frozenset(
    {"bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "mpnet", "nomic_bert", "modernbert", "new"}
)

# Where models say how many experts they have (``ModelArchConfigConvertorBase.get_num_experts`` of vLLM).
_EXPERTS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")

# Twenty times as many as any known model has; what is planned grows with each of them.
_MOST_LAYERS = 4096

MOST_EXPERTS = 16_384
"""
Most experts of a layer, likewise.
"""

# Of a value in a message.
_LONGEST_SHOWN = 60

# Of any other number, such as the width of a layer or the words of a vocabulary.
_MOST = 2**31

Config = Mapping[str, Any]
"""
A `config.json`; Any: JSON values.
"""


@dataclass(frozen=True, slots=True)
class Architecture:
    """
    The sizes of a model; 0 is that there is no such thing, None that it is not said. `max_length` is the longest text
    it takes, in tokens, `usual_length` the longest that vLLM lets it have unless it is told.

    `text` holds the config of the language model, which of a model that also sees is a part of the file.
    """

    name: str
    kind: str
    text: Config
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
    usual_length: int | None
    quantization: Quantization | None
    attention: tuple[Attention, ...]
    sparse: tuple[bool, ...]
    """Whether each layer is a mixture of experts."""

    @property
    def is_latent(self) -> bool:
        """Whether it caches one latent vector for all heads (MLA)."""
        return is_latent(self.kind, self.text)

    @property
    def padded_vocabulary(self) -> int:
        """Rows of the embeddings as vLLM pads them (``pad_vocab_size``)."""
        return -(-self.vocabulary // 64) * 64


def architecture_of(config: Config) -> Architecture:
    """Read a `config.json`.

    Raises:
        ValueError: a number that everything depends on is missing or none.
    """
    name = _name(config)
    text = config.get("text_config") or config.get("llm_config") or config
    kind = str(text.get("model_type") or config.get("model_type") or "")
    layers = _number(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers", most=_MOST_LAYERS)
    heads = _number(text, "num_attention_heads", "n_head", "n_heads")
    hidden = _number(text, "hidden_size", "n_embd", "d_model", "dim")
    kv_heads = _kv_heads(text) or heads
    head_dim = _first(text, "head_dim") or hidden // heads
    is_encoder = kind in _ENCODERS or text.get("is_causal") is False
    expert_intermediate = _first(text, "moe_intermediate_size", "expert_ffn_hidden_size")
    intermediate = _first(text, "intermediate_size", "n_inner", "ffn_dim", "hidden_dim", "ffn_hidden_size")
    if kind == "llama4_text":
        expert_intermediate, intermediate = intermediate, _first(text, "intermediate_size_mlp") or intermediate
    experts = _first(text, *_EXPERTS, most=MOST_EXPERTS)
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
        max_length=longest_text(kind, text),
        usual_length=usual_text(kind, text),
        quantization=quantization_of(config, text),
        attention=() if is_encoder else attention_of(kind, text, layers, kv_heads, head_dim),
        sparse=tuple(bool(experts) and _is_sparse(kind, text, layer, dense) for layer in range(layers)),
    )


def _name(config: Config) -> str:
    """The first of the model's architectures; empty where it names none."""
    said = config.get("architectures") or []
    if not isinstance(said, list) or not all(isinstance(each, str) for each in said):
        raise ValueError(f"architectures is {_shown(said)}; must be a list of names")
    return said[0] if said else ""


def _kv_heads(text: Config) -> int:
    """Heads of keys; 0 where it has as many as of queries (``get_total_num_kv_heads``, and its override for Falcon)."""
    if text.get("multi_query") and not text.get("new_decoder_architecture") and "multi_query_group_num" not in text:
        return 1
    return _first(text, "num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")


def _is_sparse(kind: str, text: Config, layer: int, dense: frozenset[int]) -> bool:
    """Whether a layer of a model with experts is a mixture of them."""
    if layer < (text.get("first_k_dense_replace") or 0) or layer in dense:
        return False
    step = text.get("decoder_sparse_step") or text.get("interleave_moe_layer_step") or text.get("moe_layer_freq") or 1
    if isinstance(step, list):
        return bool(step[layer])
    return (layer + (kind != "deepseek_v3")) % int(step) == 0


def _is_tied(kind: str, text: Config, config: Config) -> bool:
    """Whether input and output share their embeddings; unwritten is what transformers takes for the kind of model."""
    written = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    if written is not None:
        return bool(written)
    return kind.startswith(("gemma", "gpt2", "cohere"))


def _dtype(config: Config, text: Config) -> str | None:
    written = (each.get(key) for each in (config, text) for key in ("dtype", "torch_dtype"))
    return TYPES.get(str(next(filter(None, written), "")).removeprefix("torch."))


def _number(config: Config, *keys: str, most: int = _MOST) -> int:
    found = _first(config, *keys, most=most)
    if not found:
        written = next((key for key in keys if config.get(key) is not None), None)
        said = f"no {keys[0]}" if written is None else f"{written} is {_shown(config[written])}"
        raise ValueError(f"{said}; must be between 1 and {most}")
    return found


def _first(config: Config, *keys: str, most: int = _MOST) -> int:
    for key in keys:
        value = config.get(key)
        # Of layers that differ, the largest.
        numbers = value if isinstance(value, list) else [value]
        if value is None:
            continue
        if not all(type(each) is int and 0 <= each <= most for each in numbers):
            raise ValueError(f"{key} is {_shown(value)}; must be between 1 and {most}")
        if number := max(numbers, default=0):
            return int(number)
    return 0


def _shown(value: object) -> str:
    """A value of a file as messages have it."""
    if type(value) is int and abs(value) >= 2**64:
        return "a number of more than 64 bits"
    text = json.dumps(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
