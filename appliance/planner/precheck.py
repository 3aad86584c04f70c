"""The part of a plan that is wanted before anything is fetched: whether a layout can work at all."""

from __future__ import annotations

from appliance.config.engine import EngineConfig
from appliance.config.layout import AnyLayout, LayoutConfig
from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.planner.constraints import ConstraintViolation, constraint_violations
from appliance.planner.layout_search import with_dividing
from appliance.planner.model_info import inspect_config

# What a store has time for: its answer is only wanted early, and the fetch asks again.
_STALL_SECONDS = 10


def precheck_layout(
    storage: StorageConfig, layout: AnyLayout, engine: EngineConfig, settings: GlobalStorageConfig
) -> list[ConstraintViolation]:
    """
    What vLLM would refuse, as `check` says it, where there is something to look for; a start is not held up for less.

    Raises:
        StorageError: what the model says of itself cannot be read now.
    """
    # Sizes that are chosen later divide, and one rank cuts nothing.
    if layout == "auto" or _changes_sizes(engine):
        return []
    if layout.ranks == 1 and not layout.expert_parallel and engine.max_model_len is None:
        return []
    return check(storage, layout, engine, settings)


def check(
    storage: StorageConfig, layout: AnyLayout, engine: EngineConfig, settings: GlobalStorageConfig
) -> list[ConstraintViolation]:
    """What vLLM would refuse, by the model's `config.json` alone; memory is left to vLLM, which measures it.

    Raises:
        StorageError: what the model says of itself cannot be read now.
    """
    limits = settings.transfer.model_copy(
        update={"retries": 0, "stall_seconds": min(_STALL_SECONDS, settings.transfer.stall_seconds)}
    )
    model = inspect_config(storage, settings.model_copy(update={"transfer": limits}))
    if _changes_sizes(engine):
        return []
    said = LayoutConfig() if layout == "auto" else layout
    return [with_dividing(each, model, said) for each in constraint_violations(model, said, engine.max_model_len)]


def _changes_sizes(engine: EngineConfig) -> bool:
    """Whether the model's sizes are others in the end than its files say."""
    return "hf_overrides" in engine.args
