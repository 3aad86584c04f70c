"""Constraints of a layout, known from the sizes of a model: the checks of vLLM 0.32 when it builds the model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from appliance.config.layout import LayoutConfig
from appliance.planner.model_config import Architecture


@dataclass(frozen=True, slots=True)
class ConstraintViolation:
    """A constraint that the config violates; `path` is the key below the model's entry.

    `is_memory`: it depends on an estimate of memory, and may be overridden.
    """

    path: tuple[str, ...]
    fault: str
    remedy: str
    is_memory: bool = False

    @property
    def message(self) -> str:
        """Fault and remedy, as an error of the config shows them."""
        return f"{self.fault}; {self.remedy}"


def constraint_violations(
    model: Architecture, layout: LayoutConfig, max_model_len: int | None = None
) -> list[ConstraintViolation]:
    """Return what vLLM would refuse; a `max_model_len` of None is the model's default."""
    checks = (_heads, _feed_forward, _vocabulary, _experts, _layers, _context, _blocks)
    found = [
        ConstraintViolation(("layout", key), fault, remedy)
        for check in checks
        for key, fault, remedy in check(model, layout)
    ]
    return [*found, *_length(model, max_model_len)]


Violations = Iterator[tuple[str, str, str]]


def _heads(model: Architecture, layout: LayoutConfig) -> Violations:
    """``ModelConfig.verify_with_parallel_config``, and ``QKVParallelLinear``."""
    ranks = layout.tensor_parallel
    if model.heads % ranks:
        yield _split(ranks, f"{model.heads} attention heads")
    elif not model.is_latent and max(model.kv_heads, ranks) % min(model.kv_heads, ranks):
        fault = f"is {ranks}, and the model has {model.kv_heads} heads of keys and values"
        yield "tensor_parallel", fault, "one of the two must divide the other"


def _feed_forward(model: Architecture, layout: LayoutConfig) -> Violations:
    """``ColumnParallelLinear`` and ``FusedMoE``."""
    ranks = layout.tensor_parallel
    sparse = model.sparse
    if not all(sparse) and model.intermediate % ranks:
        yield _split(ranks, f"feed-forward layers of width {model.intermediate}")
    over = ranks * layout.data_parallel
    if any(sparse) and not layout.expert_parallel and model.expert_intermediate % over:
        yield _split(over, f"experts of width {model.expert_intermediate}", layout.data_parallel)


def _vocabulary(model: Architecture, layout: LayoutConfig) -> Violations:
    """``VocabParallelEmbedding``: padded to a multiple of 64, the rows must divide."""
    if model.padded_vocabulary % layout.tensor_parallel:
        yield _split(layout.tensor_parallel, f"a vocabulary of {model.padded_vocabulary}, padded")


def _experts(model: Architecture, layout: LayoutConfig) -> Violations:
    """``ModelConfig._verify_with_expert_parallelism``, and ``determine_expert_map``."""
    if not layout.expert_parallel:
        return
    ranks = layout.tensor_parallel * layout.data_parallel
    if not model.experts:
        yield "expert_parallel", "is true, and the model has no experts", "must be left out"
    elif model.experts < ranks:
        fault = f"is true over {ranks} ranks, and the model has {model.experts} experts"
        yield "expert_parallel", fault, "each rank must have one"


def _layers(model: Architecture, layout: LayoutConfig) -> Violations:
    """``get_pp_indices``, and the interface ``SupportsPP``, which encoders lack."""
    stages = layout.pipeline_parallel
    if stages > model.layers:
        yield "pipeline_parallel", f"is {stages}, and the model has {model.layers} layers", "must be at most that"
    elif stages > 1 and model.is_encoder:
        yield "pipeline_parallel", f"is {stages}, and vLLM runs encoders in one stage", "must be 1"


def _context(model: Architecture, layout: LayoutConfig) -> Violations:
    """``ModelConfig.verify_with_parallel_config``: context parallelism takes ranks that would hold copies of heads."""
    ranks, key = layout.decode_context_parallel, "decode_context_parallel"
    if ranks == 1 or model.is_latent:
        return
    copies = layout.tensor_parallel // model.kv_heads
    if layout.tensor_parallel <= model.kv_heads or ranks > copies:
        fault = f"is {ranks}, and tensor_parallel {layout.tensor_parallel} copies the {model.kv_heads} heads of keys"
        yield key, f"{fault} {max(copies, 1)} times", f"must be at most {max(copies, 1)}"
    elif (model.heads // model.kv_heads) % ranks:
        each = model.heads // model.kv_heads
        yield key, f"is {ranks}, and each head of keys has {each} of queries, which do not divide by it", "must divide"


def _blocks(model: Architecture, layout: LayoutConfig) -> Violations:
    """Shards end at quantization blocks: of FP8 in both dimensions (``validate_fp8_block_shape``), of GPTQ and AWQ in
    the input dimension.
    """
    quantization, ranks = model.quantization, layout.tensor_parallel
    if quantization is None or ranks == 1:
        return
    inner = [model.intermediate] if not all(model.sparse) else []
    if not model.is_latent:
        inner.append(model.heads * model.head_dim)
    if model.experts and not layout.expert_parallel:
        inner.append(model.expert_intermediate)
    for block in sorted({quantization.group, quantization.outputs} - {0, 1}):
        if wrong := next((width for width in inner if width % ranks == 0 and (width // ranks) % block), None):
            fault = f"is {ranks}, which cuts layers of width {wrong} within the blocks of {block} they are quantized in"
            yield "tensor_parallel", fault, "a share must be a multiple of that"
            return


def _length(model: Architecture, max_model_len: int | None) -> Sequence[ConstraintViolation]:
    """``_get_and_verify_max_len``; the environment variable turns it off."""
    if os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0") not in ("", "0"):
        return ()
    if max_model_len is None or model.max_length is None or max_model_len <= model.max_length:
        return ()
    fault = f"is {max_model_len}, and the model was made for {model.max_length} tokens"
    return (ConstraintViolation(("engine", "max_model_len"), fault, "must be at most that"),)


def _split(ranks: int, divided: str, copies: int = 1) -> tuple[str, str, str]:
    over = f" with data_parallel {copies}" if copies > 1 else ""
    fault = f"is {ranks // copies}{over}, and the model has {divided}, which do not divide by {ranks}"
    return "tensor_parallel", fault, "must be one of its divisors"
