"""Tensors that a checkpoint without safetensors headers is expected to have, by its config.json."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.planner.model_config import Architecture
from appliance.planner.safetensors_header import TensorInfo

# Kinds of models that normalize queries and keys.
_QK_NORM = ("qwen3", "gemma3", "olmo2")

# Kinds of models with norms before and after both attention and feed-forward.
_FOUR_NORMS = ("gemma2", "gemma3", "glm4")

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def expected_tensors(architecture: Architecture) -> list[TensorInfo]:
    """Return the tensors by the config alone, under the names that a checkpoint would have."""
    dtype = architecture.dtype or "BF16"
    shapes = _encoder(architecture) if architecture.is_encoder else _decoder(architecture)
    return [TensorInfo(name, dtype, shape) for name, shape in shapes]


def _decoder(model: Architecture) -> Shapes:
    yield "model.embed_tokens.weight", (model.vocabulary, model.hidden)
    for layer, is_sparse in enumerate(model.sparse):
        prefix = f"model.layers.{layer}."
        norms = 4 if model.kind.startswith(_FOUR_NORMS) else 2
        yield from ((f"{prefix}norm{number}.weight", (model.hidden,)) for number in range(norms))
        yield from _latent(model, f"{prefix}self_attn.") if model.is_latent else _heads(model, f"{prefix}self_attn.")
        yield from _experts(model, f"{prefix}mlp.") if is_sparse else _gated(model, f"{prefix}mlp.", model.intermediate)
    yield "model.norm.weight", (model.hidden,)
    if not model.is_tied:
        yield "lm_head.weight", (model.vocabulary, model.hidden)


def _heads(model: Architecture, prefix: str) -> Shapes:
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    has_bias = bool(model.text.get("attention_bias") or model.text.get("qkv_bias") or model.kind.startswith("qwen2"))
    for name, outputs in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        yield from _linear(prefix + name, outputs, model.hidden, has_bias=has_bias)
    yield from _linear(f"{prefix}o_proj", model.hidden, queries, has_bias=bool(model.text.get("attention_bias")))
    if model.kind.startswith(_QK_NORM):
        yield from ((f"{prefix}{name}_norm.weight", (model.head_dim,)) for name in "qk")
    if model.kind == "gpt_oss":
        yield f"{prefix}sinks", (model.heads,)


def _latent(model: Architecture, prefix: str) -> Shapes:
    text = model.text
    rank, rotated, plain, values = (
        text[key] for key in ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
    )
    queries = model.heads * (plain + rotated)
    if low := text.get("q_lora_rank"):
        yield f"{prefix}q_a_proj.weight", (low, model.hidden)
        yield f"{prefix}q_a_layernorm.weight", (low,)
        yield f"{prefix}q_b_proj.weight", (queries, low)
    else:
        yield f"{prefix}q_proj.weight", (queries, model.hidden)
    yield f"{prefix}kv_a_proj_with_mqa.weight", (rank + rotated, model.hidden)
    yield f"{prefix}kv_a_layernorm.weight", (rank,)
    yield f"{prefix}kv_b_proj.weight", (model.heads * (plain + values), rank)
    yield f"{prefix}o_proj.weight", (model.hidden, model.heads * values)


def _experts(model: Architecture, prefix: str) -> Shapes:
    text, inner = model.text, model.expert_intermediate
    yield from _linear(f"{prefix}gate", model.experts, model.hidden, has_bias=model.kind == "gpt_oss")
    if model.kind == "gpt_oss":
        yield f"{prefix}experts.gate_up_proj_bias", (model.experts, 2 * inner)
        yield f"{prefix}experts.down_proj_bias", (model.experts, model.hidden)
    if text.get("topk_method") == "noaux_tc" or text.get("scoring_func") == "sigmoid":
        yield f"{prefix}gate.e_score_correction_bias", (model.experts,)
    for expert in range(model.experts):
        yield from _gated(model, f"{prefix}experts.{expert}.", inner)
    shared = inner * (text.get("n_shared_experts") or 0) or text.get("shared_expert_intermediate_size") or 0
    if model.kind == "llama4_text":
        shared = inner
    if shared:
        yield from _gated(model, f"{prefix}shared_experts.", shared)
    if text.get("shared_expert_intermediate_size"):
        yield f"{prefix}shared_expert_gate.weight", (1, model.hidden)


def _gated(model: Architecture, prefix: str, inner: int) -> Shapes:
    has_bias = bool(model.text.get("mlp_bias"))
    for name in ("gate_proj", "up_proj"):
        yield from _linear(prefix + name, inner, model.hidden, has_bias=has_bias)
    yield from _linear(f"{prefix}down_proj", model.hidden, inner, has_bias=has_bias)


def _encoder(model: Architecture) -> Shapes:
    """A model like BERT, with the pooler that checkpoints of BERT and RoBERTa have."""
    hidden, inner = model.hidden, model.intermediate
    yield "embeddings.word_embeddings.weight", (model.vocabulary, hidden)
    yield "embeddings.position_embeddings.weight", (int(model.text.get("max_position_embeddings") or 0), hidden)
    if types := model.text.get("type_vocab_size"):
        yield "embeddings.token_type_embeddings.weight", (types, hidden)
    yield from _linear("embeddings.LayerNorm", hidden)
    for layer in range(model.layers):
        prefix = f"encoder.layer.{layer}."
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            yield from _linear(prefix + part, hidden, hidden)
        yield from _linear(f"{prefix}attention.output.LayerNorm", hidden)
        yield from _linear(f"{prefix}intermediate.dense", inner, hidden)
        yield from _linear(f"{prefix}output.dense", hidden, inner)
        yield from _linear(f"{prefix}output.LayerNorm", hidden)
    yield from _linear("pooler.dense", hidden, hidden)


def _linear(name: str, outputs: int, *inputs: int, has_bias: bool = True) -> Shapes:
    """A linear layer, or without `inputs` a norm."""
    yield f"{name}.weight", (outputs, *inputs)
    if has_bias:
        yield f"{name}.bias", (outputs,)
