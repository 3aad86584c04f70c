"""How often each model answered, and for how long, as Triton's statistics say it.

Source: https://github.com/triton-inference-server/server, protocol/extension_statistics.md
"""

from __future__ import annotations

from typing import Any

from appliance.api.oip.inference import VERSION
from appliance.models.manager import ModelManager, ModelStatus


def statistics(entry: ModelStatus, name: str) -> dict[str, Any]:  # Any: JSON values
    """The calls of this process to one model, whatever protocol they came by; what we do not measure is not there."""
    tally = entry.tally
    return {
        "name": name,
        "version": VERSION,
        "last_inference": tally.last_ms,
        "inference_count": tally.good,
        "execution_count": tally.good,
        "inference_stats": {
            "success": {"count": tally.good, "ns": tally.good_ns},
            "fail": {"count": tally.bad, "ns": tally.bad_ns},
        },
        "batch_stats": [],
    }


def every_model(manager: ModelManager) -> list[dict[str, Any]]:  # Any: JSON values
    """Those of each model that the caller may use, under the first of its names that is for the caller."""
    first: dict[str, tuple[ModelStatus, str]] = {}
    for entry, name in manager.visible():
        first.setdefault(entry.config.name, (entry, name))
    return [statistics(entry, name) for entry, name in first.values()]
