"""What the plan of a model said, beside what the model came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from appliance.core.model import Model, ReportsMemory
from appliance.planner import Plan


@dataclass(frozen=True, slots=True)
class PlanVsActual:
    """
    Figures by the same names on both sides; `real` is empty until the model is loaded, and lacks what nobody can know.

    Bytes are those of one rank: most weights, least cache. `kv_tokens` are those of one copy of the model.
    """

    planned: Mapping[str, float]
    real: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """What was planned, and nothing to hold against it yet."""
        figures: dict[str, float] = {"weight_bytes": plan.weight_bytes, "load_seconds": plan.timing.load_seconds}
        if plan.kv_blocks:
            cache_bytes = min(rank.kv_cache_bytes for rank in plan.ranks)
            figures |= {"kv_cache_bytes": cache_bytes, "kv_tokens": plan.kv_tokens}
        return cls(figures)

    def measure(self, model: Model, load_seconds: float) -> Self:
        """The same plan, held against a model that took so long to load."""
        known = model.measured() if isinstance(model, ReportsMemory) else {}
        return replace(self, real={**known, "load_seconds": round(load_seconds, 1)})

    @property
    def ratios(self) -> Mapping[str, float]:
        """How many times as much as was planned it came to, where both are known."""
        both = {name: planned for name, planned in self.planned.items() if planned and name in self.real}
        return {name: round(self.real[name] / planned, 3) for name, planned in both.items()}

    def describe(self) -> dict[str, Any]:  # Any: JSON values
        """Both sides as probes show them."""
        return {"planned": self.planned, **({"real": self.real} if self.real else {})}
