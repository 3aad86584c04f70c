"""A plan: what a model in a layout comes to on some hardware."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from appliance.config.layout import LayoutConfig
from appliance.planner.constraints import ConstraintViolation
from appliance.planner.hardware import Hardware
from appliance.planner.load_time import LoadTime


@dataclass(frozen=True, slots=True)
class RankPlan:
    """One rank: its weights are exact, its reserve is an estimate, its KV cache what is said or left."""

    pipeline: int
    tensor: int
    data: int
    weight_bytes: int
    reserve_bytes: int
    kv_cache_bytes: int


@dataclass(frozen=True)
class Plan:
    """What one model comes to.

    `kv_tokens` and `concurrency` are those of one copy; `concurrency` is how many texts of so many tokens fit at once.
    `longest` is the longest text that fits, up to what the model was made for. 0 of these is a model without a cache.
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

    @property
    def weight_bytes(self) -> int:
        """Weights on the rank that has most."""
        return max(rank.weight_bytes for rank in self.ranks)

    def describe(self) -> dict[str, Any]:  # Any: JSON values
        """The plan for programs; sizes are in bytes, times in seconds."""
        shown = {key: value for key, value in asdict(self).items() if key not in ("layout", "refusals")}
        layout = self.layout.model_dump(mode="json", exclude_defaults=True)
        refused = [{"key": ".".join(each.path), "message": each.message} for each in self.refusals]
        return shown | {"layout": layout, "refusals": refused}
