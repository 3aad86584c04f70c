"""The tensors of a model whose files have no headers that name them, as its `config.json` lets them be expected."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.planner.encoder_tensors import encoder
from appliance.planner.model_config import Architecture
from appliance.planner.tensor_info import TensorInfo

# Models whose queries and keys are normalised.
_NORMED = ("qwen3", "gemma3", "olmo2")

# Models with norms before and after both attention and feed-forward.
_FOUR_NORMS = ("gemma2", "gemma3", "glm4")


def expected(architecture: Architecture) -> list[TensorInfo]:
    """The tensors of a model by its config alone, under the names that its checkpoint would have."""
    dtype = architecture.dtype or "BF16"
    shapes = encoder(architecture) if architecture.is_encoder else _decoder(architecture)
    return [TensorInfo(name, dtype, shape) for name, shape in shapes]


Shapes = Iterator[tuple[str, tuple[int, ...]]]


def _decoder(model: Architecture) -> Shapes:
    yield "model.embed_tokens.weight", (model.vocabulary, model.hidden)
    for layer in range(model.layers):
        prefix = f"model.layers.{layer}."
        attention = _latent(model) if model.is_latent else _heads(model)
        norms = 4 if model.kind.startswith(_FOUR_NORMS) else 2
        yield from ((f"{prefix}norm{number}.weight", (model.hidden,)) for number in range(norms))
        yield from ((f"{prefix}self_attn.{name}", shape) for name, shape in attention)
        feed = _experts(model) if model.sparse[layer] else _gated(model, "mlp.", model.intermediate)
        yield from ((prefix + name, shape) for name, shape in feed)
    yield "model.norm.weight", (model.hidden,)
    if not model.is_tied:
        yield "lm_head.weight", (model.vocabulary, model.hidden)


def _heads(model: Architecture) -> Shapes:
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    has_bias = bool(model.text.get("attention_bias") or model.text.get("qkv_bias") or model.kind.startswith("qwen2"))
    for name, outputs in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        yield f"{name}.weight", (outputs, model.hidden)
        if has_bias:
            yield f"{name}.bias", (outputs,)
    yield "o_proj.weight", (model.hidden, queries)
    if model.text.get("attention_bias"):
        yield "o_proj.bias", (model.hidden,)
    if model.kind.startswith(_NORMED):
        yield from ((f"{name}_norm.weight", (model.head_dim,)) for name in "qk")
    if model.kind == "gpt_oss":
        yield "sinks", (model.heads,)


def _latent(model: Architecture) -> Shapes:
    said = model.text
    rank, rotated, plain, values = (
        said[key] for key in ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
    )
    queries = model.heads * (plain + rotated)
    if low := said.get("q_lora_rank"):
        yield "q_a_proj.weight", (low, model.hidden)
        yield "q_a_layernorm.weight", (low,)
        yield "q_b_proj.weight", (queries, low)
    else:
        yield "q_proj.weight", (queries, model.hidden)
    yield "kv_a_proj_with_mqa.weight", (rank + rotated, model.hidden)
    yield "kv_a_layernorm.weight", (rank,)
    yield "kv_b_proj.weight", (model.heads * (plain + values), rank)
    yield "o_proj.weight", (model.hidden, model.heads * values)


def _experts(model: Architecture) -> Shapes:
    said, inner = model.text, model.expert_intermediate
    yield "mlp.gate.weight", (model.experts, model.hidden)
    if model.kind == "gpt_oss":
        yield "mlp.gate.bias", (model.experts,)
        yield "mlp.experts.gate_up_proj_bias", (model.experts, 2 * inner)
        yield "mlp.experts.down_proj_bias", (model.experts, model.hidden)
    if said.get("topk_method") == "noaux_tc" or said.get("scoring_func") == "sigmoid":
        yield "mlp.gate.e_score_correction_bias", (model.experts,)
    for expert in range(model.experts):
        yield from _gated(model, f"mlp.experts.{expert}.", inner)
    shared = inner * (said.get("n_shared_experts") or 0) or said.get("shared_expert_intermediate_size") or 0
    if model.kind == "llama4_text":
        shared = inner
    if shared:
        yield from _gated(model, "mlp.shared_experts.", shared)
    if said.get("shared_expert_intermediate_size"):
        yield "mlp.shared_expert_gate.weight", (1, model.hidden)


def _gated(model: Architecture, prefix: str, inner: int) -> Shapes:
    yield f"{prefix}gate_proj.weight", (inner, model.hidden)
    yield f"{prefix}up_proj.weight", (inner, model.hidden)
    yield f"{prefix}down_proj.weight", (model.hidden, inner)
    if model.text.get("mlp_bias"):
        yield f"{prefix}gate_proj.bias", (inner,)
        yield f"{prefix}up_proj.bias", (inner,)
        yield f"{prefix}down_proj.bias", (model.hidden,)
