"""Layouts of a model: what is wrong with one, which ones work, and the smallest that holds the model (`auto`).

The constraints on sizes are the checks of vLLM 0.32 when it builds the model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from appliance.config.layout import LayoutConfig
from appliance.planner.hardware import Hardware
from appliance.planner.memory import EngineRequirements, MemoryEstimate
from appliance.planner.model_config import Architecture
from appliance.planner.model_info import ModelInfo

_MAX_SUGGESTIONS = 3

# Another layout is a remedy for these.
_SPLIT_KEYS = frozenset(("layout", key) for key in ("tensor_parallel", "pipeline_parallel", "memory_fraction"))

# Limit on ranks if there are no devices to count.
_MAX_RANKS = 16


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
    checks = (_divisions, _experts_and_layers, _context, _blocks)
    found = [
        ConstraintViolation(("layout", key), fault, remedy)
        for check in checks
        for key, fault, remedy in check(model, layout)
    ]
    # ``_get_and_verify_max_len``; the environment variable turns it off.
    is_checked = os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0") in ("", "0")
    if is_checked and max_model_len is not None and model.max_length is not None and max_model_len > model.max_length:
        fault = f"is {max_model_len}, and the model was made for {model.max_length} tokens"
        found.append(ConstraintViolation(("engine", "max_model_len"), fault, "must be at most that"))
    return found


Violations = Iterator[tuple[str, str, str]]


def _divisions(model: Architecture, layout: LayoutConfig) -> Violations:
    """Attention (``ModelConfig.verify_with_parallel_config`` and ``QKVParallelLinear``), feed-forward layers
    (``ColumnParallelLinear`` and ``FusedMoE``), and the padded vocabulary (``VocabParallelEmbedding``).
    """
    ranks, copies = layout.tensor_parallel, layout.data_parallel
    if model.heads % ranks:
        yield _indivisible(ranks, f"{model.heads} attention heads")
    elif not model.is_latent and max(model.kv_heads, ranks) % min(model.kv_heads, ranks):
        fault = f"is {ranks}, and the model has {model.kv_heads} heads of keys and values"
        yield "tensor_parallel", fault, "one of the two must divide the other"
    if not all(model.sparse) and model.intermediate % ranks:
        yield _indivisible(ranks, f"feed-forward layers of width {model.intermediate}")
    if any(model.sparse) and not layout.expert_parallel and model.expert_intermediate % (ranks * copies):
        yield _indivisible(ranks * copies, f"experts of width {model.expert_intermediate}", copies)
    if model.padded_vocabulary % ranks:
        yield _indivisible(ranks, f"a vocabulary of {model.padded_vocabulary}, padded")


def _experts_and_layers(model: Architecture, layout: LayoutConfig) -> Violations:
    """``ModelConfig._verify_with_expert_parallelism`` and ``determine_expert_map``; ``get_pp_indices`` and the
    interface ``SupportsPP``, which encoders lack.
    """
    ranks, stages = layout.tensor_parallel * layout.data_parallel, layout.pipeline_parallel
    if layout.expert_parallel and not model.experts:
        yield "expert_parallel", "is true, and the model has no experts", "must be left out"
    elif layout.expert_parallel and model.experts < ranks:
        fault = f"is true over {ranks} ranks, and the model has {model.experts} experts"
        yield "expert_parallel", fault, "each rank must have one"
    if stages > model.layers:
        yield "pipeline_parallel", f"is {stages}, and the model has {model.layers} layers", "must be at most that"
    elif stages > 1 and model.is_encoder:
        yield "pipeline_parallel", f"is {stages}, and vLLM runs encoders in one stage", "must be 1"


def _context(model: Architecture, layout: LayoutConfig) -> Violations:
    """``ModelConfig.verify_with_parallel_config``: context parallelism takes ranks that would hold copies of heads."""
    ranks, key = layout.decode_context_parallel, "decode_context_parallel"
    if ranks == 1 or model.is_latent:
        return
    copies, queries = layout.tensor_parallel // model.kv_heads, model.heads // model.kv_heads
    if layout.tensor_parallel <= model.kv_heads or ranks > copies:
        fault = f"is {ranks}, and tensor_parallel {layout.tensor_parallel} copies the {model.kv_heads} heads of keys"
        yield key, f"{fault} {max(copies, 1)} times", f"must be at most {max(copies, 1)}"
    elif queries % ranks:
        fault = f"is {ranks}, and each head of keys has {queries} of queries, which do not divide by it"
        yield key, fault, "must divide"


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


def _indivisible(ranks: int, divided: str, copies: int = 1) -> tuple[str, str, str]:
    over = f" with data_parallel {copies}" if copies > 1 else ""
    fault = f"is {ranks // copies}{over}, and the model has {divided}, which do not divide by {ranks}"
    return "tensor_parallel", fault, "must be one of its divisors"


def memory_violations(estimate: MemoryEstimate) -> list[ConstraintViolation]:
    """Return what does not fit on the hardware."""
    layout, hardware, found = estimate.layout, estimate.hardware, []
    if not hardware.is_cpu and layout.local_ranks > hardware.count and layout.executor != "ray":
        fault = f"takes {layout.local_ranks} devices of this machine, which has {hardware.count}"
        found.append(_too_large("layout", "tensor_parallel", fault, "fewer ranks, or nodes with more machines"))
    needs = [estimate.used_bytes(rank.weight_bytes) for rank in estimate.ranks]
    # On a CPU all ranks share the memory of the machine.
    need, have = (sum(needs), "machine") if hardware.is_cpu else (max(needs), "device")
    if need > estimate.budget_bytes:
        budget = _gib(estimate.budget_bytes)
        fault = f"needs {_gib(need)} of each {have} for weights and activations, and its budget is {budget}"
        key = "memory_fraction" if layout.memory_fraction else "tensor_parallel"
        found.append(_too_large("layout", key, fault, "more devices, a larger share, or a smaller model"))
    elif estimate.cache.groups and (longest := estimate.longest) < estimate.max_model_len:
        fault = f"leaves a KV cache for {longest} tokens, and one text may have {estimate.max_model_len}"
        remedy = f"engine.max_model_len must be at most {longest}" if longest else "nothing is left for the cache"
        found.append(_too_large("engine", "max_model_len", fault, remedy))
    return found


def _too_large(part: str, key: str, fault: str, remedy: str) -> ConstraintViolation:
    return ConstraintViolation((part, key), fault, remedy, is_memory=True)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def with_suggestions(
    violation: ConstraintViolation, kind: str, layouts: Iterable[LayoutConfig], otherwise: str
) -> ConstraintViolation:
    """Return the violation with up to three layouts as its remedy, if another layout is one."""
    if violation.path not in _SPLIT_KEYS:
        return violation
    names = ", ".join(map(describe, islice(layouts, _MAX_SUGGESTIONS)))
    return replace(violation, remedy=f"{kind}: {names}" if names else otherwise)


def working_layouts(requested: MemoryEstimate) -> Iterator[LayoutConfig]:
    """Yield layouts that divide and fit, nearest to the requested one first."""
    layout, hardware = requested.layout, requested.hardware
    max_ranks = max(layout.ranks, _MAX_RANKS) if hardware.is_cpu else hardware.count * layout.nodes.count
    for other in _candidates(layout, max_ranks):
        estimate = replace(requested, layout=other)
        if not _size_violations(estimate) and not memory_violations(estimate):
            yield other


def dividing_layouts(
    model: Architecture, requested: LayoutConfig, max_ranks: int = _MAX_RANKS
) -> Iterator[LayoutConfig]:
    """Yield layouts whose sizes divide, whether they fit or not, nearest to `requested` first."""
    others = _candidates(requested, max(max_ranks, requested.ranks))
    return (each for each in others if not constraint_violations(model, each))


def search_layout(info: ModelInfo, requirements: EngineRequirements, hardware: Hardware) -> tuple[LayoutConfig, str]:
    """Return the layout with the fewest ranks that holds the model, and the reason.

    If none holds it, return the layout with the most ranks whose sizes divide.
    """
    layouts = [LayoutConfig(tensor_parallel=count) for count in range(1, hardware.count + 1)]
    estimates = [MemoryEstimate(info, each, requirements, hardware) for each in layouts]
    possible = [each for each in estimates if not _size_violations(each)] or estimates[:1]
    found = next((each.layout for each in possible if not memory_violations(each)), None)
    if found is None:
        return possible[-1].layout, f"nothing holds it on {hardware}; this is the widest that divides"
    if hardware.is_cpu:
        return found, "there is no GPU: one rank on the CPU"
    if found.tensor_parallel == 1:
        return found, f"it fits on one of {hardware}"
    return found, f"{found.tensor_parallel} ranks are the fewest that hold it and divide its heads, on {hardware}"


def describe(layout: LayoutConfig) -> str:
    """Return a layout in the words of the config."""
    names = ("tensor_parallel", "pipeline_parallel", "data_parallel")
    parts = [f"{name} {size}" for name in names if (size := getattr(layout, name)) > 1] or ["tensor_parallel 1"]
    return " x ".join(parts) + (" with expert_parallel" if layout.expert_parallel else "")


def _size_violations(estimate: MemoryEstimate) -> list[ConstraintViolation]:
    max_model_len = estimate.requirements.engine.max_model_len
    return constraint_violations(estimate.info.architecture, estimate.layout, max_model_len)


def _candidates(requested: LayoutConfig, max_ranks: int) -> Iterator[LayoutConfig]:
    """Yield layouts over up to `max_ranks` ranks, nearest to `requested` first."""
    ranks = requested.tensor_parallel * requested.pipeline_parallel

    def distance(shape: tuple[int, int]) -> tuple[int, int, int]:
        tensor, pipeline = shape
        apart = abs(tensor - requested.tensor_parallel)
        return abs(pipeline - requested.pipeline_parallel), apart, abs(tensor * pipeline - ranks)

    shapes = [
        (tensor, pipeline)
        for pipeline in {1, 2, requested.pipeline_parallel}
        for tensor in range(1, max_ranks + 1)
        if tensor * pipeline * requested.data_parallel <= max_ranks
    ]
    for tensor, pipeline in sorted(shapes, key=distance):
        sizes = {"tensor_parallel": tensor, "pipeline_parallel": pipeline}
        # The config's devices and context parallelism belong to its own sizes.
        yield requested.model_copy(update={**sizes, "devices": None, "decode_context_parallel": 1})
