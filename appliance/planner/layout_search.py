"""The layouts that work: the nearest to one that does not, and the smallest where the choice is ours."""

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

_MOST_NAMED = 3

SPLITS = frozenset(("layout", key) for key in ("tensor_parallel", "pipeline_parallel", "memory_fraction"))
"""
The keys for which other sizes are a remedy.
"""

# More ranks than any machine has; where there is no device to count.
_MOST_RANKS = 16


def nearest(
    subject: ModelInfo, wanted: LayoutConfig, demand: EngineRequirements, hardware: Hardware
) -> list[LayoutConfig]:
    """Up to three layouts that work and are most like the wanted one."""
    most = _most(wanted, hardware)
    fitting = (each for each in candidates(wanted, most) if works(subject, each, demand, hardware))
    return list(islice(fitting, _MOST_NAMED))


def dividing(model: Architecture, wanted: LayoutConfig, most: int = _MOST_RANKS) -> Iterator[LayoutConfig]:
    """Layouts that vLLM would take, whether they fit or not, those most like the wanted one first."""
    return (each for each in candidates(wanted, max(most, wanted.ranks)) if not constraint_violations(model, each))


def with_dividing(fault: ConstraintViolation, model: Architecture, wanted: LayoutConfig) -> ConstraintViolation:
    """A fault of a layout with up to three that divide as its remedy."""
    if fault.path not in SPLITS:
        return fault
    others = ", ".join(map(named, islice(dividing(model, wanted), _MOST_NAMED)))
    return replace(fault, remedy=f"those that divide: {others}") if others else fault


def search_layout(subject: ModelInfo, demand: EngineRequirements, hardware: Hardware) -> tuple[LayoutConfig, str]:
    """The layout with the fewest ranks that holds the model, and why it is that one.

    Where none does, it is the one with the most ranks that vLLM would take.
    """
    counts = [1] if hardware.is_cpu else range(1, hardware.count + 1)
    possible = [
        layout
        for count in counts
        if not constraint_violations(
            subject.architecture, layout := LayoutConfig(tensor_parallel=count), _length(demand)
        )
    ] or [LayoutConfig()]
    for layout in possible:
        found = estimate(subject, layout, demand, hardware)
        if not found.faults:
            return layout, _why(layout, hardware)
    return possible[-1], f"nothing holds it on {hardware}; this is the widest that divides"


def works(subject: ModelInfo, layout: LayoutConfig, demand: EngineRequirements, hardware: Hardware) -> bool:
    """Whether vLLM would take the layout, and the model fits."""
    if constraint_violations(subject.architecture, layout, _length(demand)):
        return False
    return not estimate(subject, layout, demand, hardware).faults


def named(layout: LayoutConfig) -> str:
    """A layout in the words of the file."""
    sizes = {
        "tensor_parallel": layout.tensor_parallel,
        "pipeline_parallel": layout.pipeline_parallel,
        "data_parallel": layout.data_parallel,
    }
    said = [f"{name} {size}" for name, size in sizes.items() if size > 1] or ["tensor_parallel 1"]
    return " x ".join(said) + (" with expert_parallel" if layout.expert_parallel else "")


def _most(wanted: LayoutConfig, hardware: Hardware) -> int:
    """How many ranks there can be."""
    return max(wanted.ranks, _MOST_RANKS) if hardware.is_cpu else hardware.count * wanted.nodes.count


def candidates(wanted: LayoutConfig, most: int) -> Iterator[LayoutConfig]:
    """Ways to lay it out over up to so many ranks, those most like the wanted one first."""
    shapes = [
        (tensor, pipeline)
        for pipeline in {1, 2, wanted.pipeline_parallel}
        for tensor in range(1, most + 1)
        if tensor * pipeline * wanted.data_parallel <= most
    ]
    shapes.sort(key=lambda shape: _distance(shape, wanted))
    for tensor, pipeline in shapes:
        sizes = {"tensor_parallel": tensor, "pipeline_parallel": pipeline}
        # What is said of devices and shared tokens was said of the other sizes.
        yield wanted.model_copy(update={**sizes, "devices": None, "decode_context_parallel": 1})


def _distance(shape: tuple[int, int], wanted: LayoutConfig) -> tuple[int, int, int]:
    tensor, pipeline = shape
    ranks = wanted.tensor_parallel * wanted.pipeline_parallel
    apart = abs(tensor - wanted.tensor_parallel)
    return abs(pipeline - wanted.pipeline_parallel), apart, abs(tensor * pipeline - ranks)


def _length(demand: EngineRequirements) -> int | None:
    return demand.engine.max_model_len


def _why(layout: LayoutConfig, hardware: Hardware) -> str:
    if hardware.is_cpu:
        return "there is no GPU: one rank on the CPU"
    if layout.tensor_parallel == 1:
        return f"it fits on one of {hardware}"
    return f"{layout.tensor_parallel} ranks are the fewest that hold it and divide its heads, on {hardware}"
