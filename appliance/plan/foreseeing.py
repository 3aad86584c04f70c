"""
The part of a plan that a server wants before it fetches: whether a layout can work at all.
"""

from __future__ import annotations

from appliance.layout import AnyLayout
from appliance.plan.choosing import with_dividing
from appliance.plan.refusals import Refusal, refusals
from appliance.plan.subject import look_at_config
from appliance.storage.section import StorageSection, StorageSettings
from appliance.vllm_engine.section import EngineSection

# What a store has time for: its answer is only wanted early, and the fetch asks again.
_STALL_SECONDS = 10


def foresee(
    storage: StorageSection, layout: AnyLayout, engine: EngineSection, settings: StorageSettings
) -> list[Refusal]:
    """
    What vLLM would refuse, by the model's `config.json` alone; memory is left to vLLM, which measures it.

    Raises:
        StorageError: what the model says of itself cannot be read now.
    """
    # Sizes that are chosen later divide, and those that are changed later are not known.
    if layout == "auto" or "hf_overrides" in engine.args:
        return []
    # One rank cuts nothing: there is nothing to look for, and a start is not held up.
    if layout.ranks == 1 and not layout.expert_parallel and engine.max_model_len is None:
        return []
    limits = settings.transfer.model_copy(
        update={"retries": 0, "stall_seconds": min(_STALL_SECONDS, settings.transfer.stall_seconds)}
    )
    model = look_at_config(storage, settings.model_copy(update={"transfer": limits}))
    return [with_dividing(each, model, layout) for each in refusals(model, layout, engine.max_model_len)]
