"""Search for layouts: the smallest that holds a model (`auto`), and those nearest to one that does not work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from appliance.config.layout import LayoutConfig
from appliance.planner.constraints import ConstraintViolation, constraint_violations
from appliance.planner.hardware import Hardware
from appliance.planner.memory_estimate import EngineRequirements, estimate
from appliance.planner.model_config import Architecture
from appliance.planner.model_info import ModelInfo

_MAX_SUGGESTIONS = 3

SPLIT_KEYS = frozenset(("layout", key) for key in ("tensor_parallel", "pipeline_parallel", "memory_fraction"))
"""The keys for which another layout is suggested."""

# Limit on ranks if there are no devices to count.
_MAX_RANKS = 16


def nearest(
    info: ModelInfo, requested: LayoutConfig, requirements: EngineRequirements, hardware: Hardware
) -> list[LayoutConfig]:
    """Return up to three layouts that work, nearest to `requested` first."""
    max_ranks = _max_ranks(requested, hardware)
    fitting = (each for each in candidates(requested, max_ranks) if works(info, each, requirements, hardware))
    return list(islice(fitting, _MAX_SUGGESTIONS))


def dividing(model: Architecture, requested: LayoutConfig, max_ranks: int = _MAX_RANKS) -> Iterator[LayoutConfig]:
    """Yield layouts whose sizes divide, whether they fit or not, nearest to `requested` first."""
    return (
        each
        for each in candidates(requested, max(max_ranks, requested.ranks))
        if not constraint_violations(model, each)
    )


def with_dividing(violation: ConstraintViolation, model: Architecture, requested: LayoutConfig) -> ConstraintViolation:
    """Return the violation with up to three layouts that divide as its remedy."""
    if violation.path not in SPLIT_KEYS:
        return violation
    others = ", ".join(map(describe, islice(dividing(model, requested), _MAX_SUGGESTIONS)))
    return replace(violation, remedy=f"those that divide: {others}") if others else violation


def search_layout(info: ModelInfo, requirements: EngineRequirements, hardware: Hardware) -> tuple[LayoutConfig, str]:
    """Return the layout with the fewest ranks that holds the model, and the reason.

    If none holds it, return the layout with the most ranks whose sizes divide.
    """
    counts = [1] if hardware.is_cpu else range(1, hardware.count + 1)
    possible = [
        layout
        for count in counts
        if not constraint_violations(
            info.architecture, layout := LayoutConfig(tensor_parallel=count), _length(requirements)
        )
    ] or [LayoutConfig()]
    for layout in possible:
        found = estimate(info, layout, requirements, hardware)
        if not found.violations:
            return layout, _why(layout, hardware)
    return possible[-1], f"nothing holds it on {hardware}; this is the widest that divides"


def works(info: ModelInfo, layout: LayoutConfig, requirements: EngineRequirements, hardware: Hardware) -> bool:
    """Whether the sizes divide and the model fits."""
    if constraint_violations(info.architecture, layout, _length(requirements)):
        return False
    return not estimate(info, layout, requirements, hardware).violations


def describe(layout: LayoutConfig) -> str:
    """Return a layout in the words of the config."""
    sizes = {
        "tensor_parallel": layout.tensor_parallel,
        "pipeline_parallel": layout.pipeline_parallel,
        "data_parallel": layout.data_parallel,
    }
    parts = [f"{name} {size}" for name, size in sizes.items() if size > 1] or ["tensor_parallel 1"]
    return " x ".join(parts) + (" with expert_parallel" if layout.expert_parallel else "")


def _max_ranks(requested: LayoutConfig, hardware: Hardware) -> int:
    return max(requested.ranks, _MAX_RANKS) if hardware.is_cpu else hardware.count * requested.nodes.count


def candidates(requested: LayoutConfig, max_ranks: int) -> Iterator[LayoutConfig]:
    """Yield layouts over up to `max_ranks` ranks, nearest to `requested` first."""
    shapes = [
        (tensor, pipeline)
        for pipeline in {1, 2, requested.pipeline_parallel}
        for tensor in range(1, max_ranks + 1)
        if tensor * pipeline * requested.data_parallel <= max_ranks
    ]
    shapes.sort(key=lambda shape: _distance(shape, requested))
    for tensor, pipeline in shapes:
        sizes = {"tensor_parallel": tensor, "pipeline_parallel": pipeline}
        # The config's devices and context parallelism belong to its own sizes.
        yield requested.model_copy(update={**sizes, "devices": None, "decode_context_parallel": 1})


def _distance(shape: tuple[int, int], requested: LayoutConfig) -> tuple[int, int, int]:
    tensor, pipeline = shape
    ranks = requested.tensor_parallel * requested.pipeline_parallel
    apart = abs(tensor - requested.tensor_parallel)
    return abs(pipeline - requested.pipeline_parallel), apart, abs(tensor * pipeline - ranks)


def _length(requirements: EngineRequirements) -> int | None:
    return requirements.engine.max_model_len


def _why(layout: LayoutConfig, hardware: Hardware) -> str:
    if hardware.is_cpu:
        return "there is no GPU: one rank on the CPU"
    if layout.tensor_parallel == 1:
        return f"it fits on one of {hardware}"
    return f"{layout.tensor_parallel} ranks are the fewest that hold it and divide its heads, on {hardware}"
