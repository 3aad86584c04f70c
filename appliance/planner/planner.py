"""The walk from a model of the file to its plan; no weights are fetched, and nothing heavy is imported."""

from __future__ import annotations

from dataclasses import replace

from appliance.config.layout import AnyLayout, LayoutConfig
from appliance.planner import layout_search
from appliance.planner.constraints import ConstraintViolation, constraint_violations
from appliance.planner.hardware import Hardware
from appliance.planner.load_time import USUAL_GBIT, timing_of
from appliance.planner.memory_budget import budget_bytes
from appliance.planner.memory_estimate import EngineRequirements, MemoryEstimate, estimate
from appliance.planner.memory_plan import Plan
from appliance.planner.model_info import ModelInfo


def plan(
    name: str,
    subject: ModelInfo,
    wanted: AnyLayout,
    demand: EngineRequirements,
    hardware: Hardware,
    gbit: float = USUAL_GBIT,
) -> Plan:
    """What a model comes to; what cannot work is in `constraint_violations`, with the nearest layouts that do.

    A layout whose sizes do not divide is planned as the nearest one that does, so that there is something to see.
    """
    layout, reason = layout_search.search_layout(subject, demand, hardware) if wanted == "auto" else (wanted, "")
    found = constraint_violations(subject.architecture, layout, demand.engine.max_model_len)
    shown = layout
    if any(each.path[0] == "layout" for each in found):
        shown = next(layout_search.dividing(subject.architecture, layout, hardware.count), LayoutConfig())
        reason = f"in place of {layout_search.named(layout)}, which cannot work"
    counted = estimate(subject, shown, demand, hardware)
    # One fault of a key is enough: its remedy mends the others.
    faults = list({each.path: each for each in reversed(found or counted.faults)}.values())[::-1]
    if any(each.path in layout_search.SPLITS for each in faults):
        others = layout_search.nearest(subject, layout, demand, hardware)
        faults = [_with_nearest(each, others, hardware) for each in faults]
    return _made(name, subject, shown, reason, counted, hardware, gbit, tuple(faults))


def _made(
    name: str,
    subject: ModelInfo,
    layout: LayoutConfig,
    reason: str,
    counted: MemoryEstimate,
    hardware: Hardware,
    gbit: float,
    faults: tuple[ConstraintViolation, ...],
) -> Plan:
    here = sum(rank.weight_bytes for rank in counted.ranks) // layout.nodes.count
    fetched = 0 if subject.is_here else subject.size_bytes
    return Plan(
        model=name,
        architecture=subject.architecture.name,
        parameters=subject.parameters,
        dtype=counted.dtype,
        source=subject.source,
        files=subject.files,
        size_bytes=subject.size_bytes,
        read_bytes=subject.read_bytes,
        layout=layout,
        reason=reason,
        hardware=hardware,
        budget_bytes=budget_bytes(layout, hardware),
        ranks=counted.ranks,
        kv_token_bytes=counted.cache.token_bytes,
        kv_blocks=counted.blocks,
        kv_tokens=counted.tokens,
        max_model_len=counted.max_model_len,
        longest=counted.longest,
        concurrency=counted.contexts,
        disk_bytes=fetched,
        timing=timing_of(fetched, here, gbit, on_cpu=hardware.is_cpu),
        refusals=faults,
    )


def _with_nearest(fault: ConstraintViolation, others: list[LayoutConfig], hardware: Hardware) -> ConstraintViolation:
    if fault.path not in layout_search.SPLITS:
        return fault
    said = ", ".join(map(layout_search.named, others))
    return replace(
        fault, remedy=f"nearest that work: {said}" if said else f"nothing works on {hardware}: {fault.remedy}"
    )
