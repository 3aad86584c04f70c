"""The plan of one model: memory, KV cache and times in a layout on some hardware, and what cannot work.

No weights are downloaded, and nothing heavy is imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from appliance.config.engine import EngineConfig
from appliance.config.layout import AnyLayout, LayoutConfig
from appliance.config.models import LanguageModelConfig, ModelConfig
from appliance.config.storage import GlobalStorageConfig
from appliance.planner.hardware import Hardware
from appliance.planner.layouts import (
    ConstraintViolation,
    constraint_violations,
    describe,
    dividing_layouts,
    memory_violations,
    search_layout,
    with_suggestions,
    working_layouts,
)
from appliance.planner.memory import EngineRequirements, MemoryEstimate, RankPlan
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
    model, reason = info.architecture, ""
    if layout == "auto":
        layout, reason = search_layout(info, requirements, hardware)
    requested = estimate = MemoryEstimate(info, layout, requirements, hardware)
    violations = constraint_violations(model, layout, requirements.engine.max_model_len)
    if any(each.path[0] == "layout" for each in violations):
        other = next(dividing_layouts(model, layout, hardware.count), LayoutConfig())
        estimate = replace(requested, layout=other)
        reason = f"in place of {describe(layout)}, which cannot work"
    download_bytes = 0 if info.is_local else info.size_bytes
    # A machine loads the weights of its own ranks.
    load_bytes = sum(rank.weight_bytes for rank in estimate.ranks) // estimate.layout.nodes.count
    start_seconds = _START_SECONDS_CPU if hardware.is_cpu else _START_SECONDS_GPU
    return Plan(
        model=name,
        architecture=model.name,
        parameters=info.parameters,
        dtype=estimate.dtype,
        source=info.source,
        files=info.files,
        size_bytes=info.size_bytes,
        read_bytes=info.read_bytes,
        layout=estimate.layout,
        reason=reason,
        hardware=hardware,
        budget_bytes=estimate.budget_bytes,
        ranks=estimate.ranks,
        kv_token_bytes=estimate.cache.token_bytes,
        kv_blocks=estimate.blocks,
        kv_tokens=estimate.tokens,
        max_model_len=estimate.max_model_len,
        longest=estimate.longest,
        concurrency=estimate.concurrency_by_length,
        disk_bytes=download_bytes,
        timing=load_time(download_bytes, load_bytes, start_seconds, gbit),
        refusals=_refusals(violations or memory_violations(estimate), requested),
        info=info,
    )


def _refusals(violations: Sequence[ConstraintViolation], requested: MemoryEstimate) -> tuple[ConstraintViolation, ...]:
    """Return one violation per key, whose remedy covers the others of that key, with the nearest layouts that work."""
    first = {each.path: each for each in reversed(violations)}
    nothing = f"nothing works on {requested.hardware}"
    return tuple(
        with_suggestions(each, "nearest that work", working_layouts(requested), f"{nothing}: {each.remedy}")
        for each in reversed(first.values())
    )


def load_time(download_bytes: int, load_bytes: int, start_seconds: float, gbit: float) -> LoadTime:
    """Return the estimated time to download and to load a model."""
    return LoadTime(
        download_seconds=round(download_bytes * 8 / (gbit * 10**9), 1),
        load_seconds=round(load_bytes / _LOAD_BYTES_PER_SECOND + start_seconds, 1),
        gbit=gbit,
    )


def precheck_layout(config: ModelConfig, settings: GlobalStorageConfig) -> list[ConstraintViolation]:
    """Run `check`, unless the layout has nothing that could violate a constraint.

    Raises:
        StorageError: the model's config.json cannot be read now.
    """
    if not isinstance(config, LanguageModelConfig) or not isinstance(config.engine, EngineConfig):
        return []
    layout, engine = config.layout, config.engine
    # `auto` chooses sizes that divide, and one rank divides nothing.
    if layout == "auto" or _overrides_sizes(engine):
        return []
    is_plain = layout.ranks == 1 and not layout.expert_parallel and engine.max_model_len is None
    return [] if is_plain else check(config, settings)


def check(config: ModelConfig, settings: GlobalStorageConfig) -> list[ConstraintViolation]:
    """Return what vLLM would refuse, known from `config.json` alone; memory is not checked.

    Raises:
        StorageError: the model's config.json cannot be read now.
    """
    if not isinstance(config, LanguageModelConfig) or not isinstance(config.engine, EngineConfig) or not config.storage:
        return []
    model = inspect_config(config.storage, precheck_settings(settings))
    if _overrides_sizes(config.engine):
        return []
    layout = LayoutConfig() if config.layout == "auto" else config.layout
    return [
        with_suggestions(each, "those that divide", dividing_layouts(model, layout), each.remedy)
        for each in constraint_violations(model, layout, config.engine.max_model_len)
    ]


def precheck_settings(settings: GlobalStorageConfig) -> GlobalStorageConfig:
    """Return the settings with which files are looked at before a download."""
    stall_seconds = min(_PRECHECK_STALL_SECONDS, settings.transfer.stall_seconds)
    transfer = settings.transfer.model_copy(update={"retries": 0, "stall_seconds": stall_seconds})
    return settings.model_copy(update={"transfer": transfer})


def _overrides_sizes(engine: EngineConfig) -> bool:
    """Whether the sizes in `config.json` are not those that vLLM uses."""
    return "hf_overrides" in engine.args


def probes(times: Iterable[LoadTime], port: int) -> dict[str, Any]:  # Any: YAML values
    """Return the probes of a container whose models load one after the other."""
    seconds = sum(each.download_seconds + each.load_seconds for each in times)
    startup_failures = max(6, math.ceil(seconds * _PROBE_FACTOR / _PERIOD_SECONDS))
    probes = (("startup", "/startupz", startup_failures), ("liveness", "/livez", 3), ("readiness", "/readyz", 1))
    return {
        f"{name}Probe": {
            "httpGet": {"path": path, "port": port},
            "periodSeconds": _PERIOD_SECONDS,
            "timeoutSeconds": 5,
            "failureThreshold": failures,
        }
        for name, path, failures in probes
    }
