"""The plan of one model: memory, KV cache and times in a layout on some hardware, and what cannot work.

No weights are downloaded, and nothing heavy is imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from appliance.config.engine import EngineConfig, PythonConfig
from appliance.config.layout import AnyLayout, LayoutConfig
from appliance.config.models import LocalModelConfig, ModelConfig
from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.planner import layout_search
from appliance.planner.constraints import ConstraintViolation, constraint_violations
from appliance.planner.hardware import Hardware
from appliance.planner.memory_budget import budget_bytes
from appliance.planner.memory_estimate import EngineRequirements, RankPlan, estimate
from appliance.planner.model_info import ModelInfo, inspect_config

DEFAULT_GBIT = 1.0

# Read rate of a local SSD, and the fixed cost of a start: imports, compilation, graph capture.
_LOAD_BYTES_PER_SECOND = 2 * 10**9
_START_SECONDS_CPU = 15.0
_START_SECONDS_GPU = 75.0

# Probes allow three times the estimate, because networks and disks are shared.
_PROBE_FACTOR = 3
_PERIOD_SECONDS = 10

# The precheck gives up early on a slow store: the download repeats the check.
_PRECHECK_STALL_SECONDS = 10


@dataclass(frozen=True, slots=True)
class LoadTime:
    """Estimated seconds; `gbit` is the assumed speed of the network in Gbit/s."""

    download_seconds: float
    load_seconds: float
    gbit: float


@dataclass(frozen=True)
class Plan:
    """Sizes in bytes, times in seconds.

    `kv_tokens` and `concurrency` are those of one data-parallel copy; `concurrency` maps a sequence length to how many
    such sequences fit at once; `longest` is the longest sequence that fits. They are 0 or empty without a KV cache.
    `reason` says why the layout differs from the config's, or is empty.
    """

    model: str
    architecture: str
    parameters: int | None
    dtype: str
    source: str
    files: int
    size_bytes: int
    read_bytes: int
    layout: LayoutConfig
    reason: str
    hardware: Hardware
    budget_bytes: int
    ranks: tuple[RankPlan, ...]
    kv_token_bytes: int
    kv_blocks: int
    kv_tokens: int
    max_model_len: int
    longest: int
    concurrency: Mapping[int, float]
    disk_bytes: int
    timing: LoadTime
    refusals: tuple[ConstraintViolation, ...]
    info: ModelInfo
    """The files that were inspected, for those who would inspect them again."""

    @property
    def weight_bytes(self) -> int:
        """Weights on the rank that has the most."""
        return max(rank.weight_bytes for rank in self.ranks)

    def describe(self) -> dict[str, Any]:  # Any: JSON values
        """Return the plan as JSON."""
        shown = asdict(replace(self, info=None))  # type: ignore[arg-type]  # left out, and not copied
        for key in ("layout", "refusals", "info"):
            del shown[key]
        layout = self.layout.model_dump(mode="json", exclude_defaults=True)
        refusals = [{"key": ".".join(each.path), "message": each.message} for each in self.refusals]
        return shown | {"layout": layout, "refusals": refusals}


def plan(
    name: str,
    info: ModelInfo,
    layout: AnyLayout,
    requirements: EngineRequirements,
    hardware: Hardware,
    gbit: float = DEFAULT_GBIT,
) -> Plan:
    """Plan a model; violated constraints are in `refusals`, with the nearest layouts that work.

    If a layout's sizes do not divide, the nearest that do are planned instead. `gbit` is the network speed in Gbit/s.
    """
    layout, reason = layout_search.search_layout(info, requirements, hardware) if layout == "auto" else (layout, "")
    violations = constraint_violations(info.architecture, layout, requirements.engine.max_model_len)
    planned = layout
    if any(each.path[0] == "layout" for each in violations):
        planned = next(layout_search.dividing(info.architecture, layout, hardware.count), LayoutConfig())
        reason = f"in place of {layout_search.describe(layout)}, which cannot work"
    estimated = estimate(info, planned, requirements, hardware)
    # One violation per key: its remedy covers the others of that key.
    first = {each.path: each for each in reversed(violations or estimated.violations)}
    refusals = (_with_nearest(each, info, layout, requirements, hardware) for each in reversed(first.values()))
    download_bytes = 0 if info.is_local else info.size_bytes
    load_bytes = sum(rank.weight_bytes for rank in estimated.ranks) // planned.nodes.count
    return Plan(
        model=name,
        architecture=info.architecture.name,
        parameters=info.parameters,
        dtype=estimated.dtype,
        source=info.source,
        files=info.files,
        size_bytes=info.size_bytes,
        read_bytes=info.read_bytes,
        layout=planned,
        reason=reason,
        hardware=hardware,
        budget_bytes=budget_bytes(planned, hardware),
        ranks=estimated.ranks,
        kv_token_bytes=estimated.cache.token_bytes,
        kv_blocks=estimated.blocks,
        kv_tokens=estimated.tokens,
        max_model_len=estimated.max_model_len,
        longest=estimated.longest,
        concurrency=estimated.concurrency_by_length,
        disk_bytes=download_bytes,
        timing=_load_time(download_bytes, load_bytes, gbit, on_cpu=hardware.is_cpu),
        refusals=tuple(refusals),
        info=info,
    )


def _with_nearest(
    violation: ConstraintViolation,
    info: ModelInfo,
    layout: LayoutConfig,
    requirements: EngineRequirements,
    hardware: Hardware,
) -> ConstraintViolation:
    """Return the violation with up to three layouts that work as its remedy, if another layout is one."""
    if violation.path not in layout_search.SPLIT_KEYS:
        return violation
    names = ", ".join(map(layout_search.describe, layout_search.nearest(info, layout, requirements, hardware)))
    remedy = f"nearest that work: {names}" if names else f"nothing works on {hardware}: {violation.remedy}"
    return replace(violation, remedy=remedy)


def precheck_layout(config: ModelConfig, settings: GlobalStorageConfig) -> list[ConstraintViolation]:
    """Run `check` on a model that vLLM computes, unless its layout has nothing that could violate a constraint.

    Raises:
        StorageError: the model's config.json cannot be read now.
    """
    if not isinstance(config, LocalModelConfig) or config.storage is None or isinstance(config.engine, PythonConfig):
        return []
    storage, layout, engine = config.storage, config.layout, config.engine
    # `auto` chooses sizes that divide, and one rank divides nothing.
    if layout == "auto" or _overrides_sizes(engine):
        return []
    if layout.ranks == 1 and not layout.expert_parallel and engine.max_model_len is None:
        return []
    return check(storage, layout, engine, settings)


def check(
    storage: StorageConfig, layout: AnyLayout, engine: EngineConfig, settings: GlobalStorageConfig
) -> list[ConstraintViolation]:
    """Return what vLLM would refuse, known from `config.json` alone; memory is not checked.

    Raises:
        StorageError: the model's config.json cannot be read now.
    """
    stall_seconds = min(_PRECHECK_STALL_SECONDS, settings.transfer.stall_seconds)
    transfer = settings.transfer.model_copy(update={"retries": 0, "stall_seconds": stall_seconds})
    model = inspect_config(storage, settings.model_copy(update={"transfer": transfer}))
    if _overrides_sizes(engine):
        return []
    fixed = LayoutConfig() if layout == "auto" else layout
    violations = constraint_violations(model, fixed, engine.max_model_len)
    return [layout_search.with_dividing(each, model, fixed) for each in violations]


def _overrides_sizes(engine: EngineConfig) -> bool:
    """Whether the sizes in `config.json` are not those that vLLM uses."""
    return "hf_overrides" in engine.args


def _load_time(download_bytes: int, load_bytes: int, gbit: float, *, on_cpu: bool) -> LoadTime:
    """Estimate the times; `load_bytes` are the weights of all ranks of one machine."""
    start_seconds = _START_SECONDS_CPU if on_cpu else _START_SECONDS_GPU
    return LoadTime(
        download_seconds=round(download_bytes * 8 / (gbit * 10**9), 1),
        load_seconds=round(load_bytes / _LOAD_BYTES_PER_SECOND + start_seconds, 1),
        gbit=gbit,
    )


def probes(times: Iterable[LoadTime], port: int) -> dict[str, Any]:  # Any: YAML values
    """Return the probes of a container whose models load one after the other."""
    seconds = sum(each.download_seconds + each.load_seconds for each in times)
    failures = max(6, math.ceil(seconds * _PROBE_FACTOR / _PERIOD_SECONDS))
    return {
        "startupProbe": _probe("/startupz", port, failures),
        "livenessProbe": _probe("/livez", port, 3),
        "readinessProbe": _probe("/readyz", port, 1),
    }


def _probe(path: str, port: int, failures: int) -> dict[str, Any]:  # Any: YAML values
    get = {"path": path, "port": port}
    return {"httpGet": get, "periodSeconds": _PERIOD_SECONDS, "timeoutSeconds": 5, "failureThreshold": failures}
