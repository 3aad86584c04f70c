"""How often each model answered, and for how long, as Triton's statistics say it.

Source: https://github.com/triton-inference-server/server, protocol/extension_statistics.md
"""

from __future__ import annotations

from typing import Any

from appliance.api.oip.inference import VERSION
from appliance.models.manager import ModelManager
from appliance.models.model_status import ModelStatus


def statistics(entry: ModelStatus, name: str) -> dict[str, Any]:  # Any: JSON values
    """The calls of this process to one model, whatever protocol they came by; what we do not measure is not there."""
    totals = entry.requests.totals
    return {
        "name": name,
        "version": VERSION,
        "last_inference": totals.last_started_ms,
        "inference_count": totals.succeeded,
        "execution_count": totals.succeeded,
        "inference_stats": {
            "success": {"count": totals.succeeded, "ns": totals.succeeded_ns},
            "fail": {"count": totals.failed, "ns": totals.failed_ns},
        },
        "batch_stats": [],
    }


def every_model(manager: ModelManager) -> list[dict[str, Any]]:  # Any: JSON values
    """Those of each model that the caller may use, under the first of its names that is for the caller."""
    first: dict[str, tuple[ModelStatus, str]] = {}
    for entry, name in manager.visible():
        first.setdefault(entry.config.name, (entry, name))
    return [statistics(entry, name) for entry, name in first.values()]
