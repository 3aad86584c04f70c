"""
What a model comes to in a layout, known before its first byte is fetched: `look` at its files, then `plan`.
"""

from __future__ import annotations

from appliance.planner.constraints import Refusal, refusals
from appliance.planner.hardware import Hardware, named, seen
from appliance.planner.layout_search import choose
from appliance.planner.load_time import USUAL_GBIT, probes
from appliance.planner.memory_estimate import Demand
from appliance.planner.memory_plan import Plan, RankPlan
from appliance.planner.model_info import Subject, look, look_at_config
from appliance.planner.planner import plan
from appliance.planner.precheck import check, foresee

__all__ = [
    "USUAL_GBIT",
    "Demand",
    "Hardware",
    "Plan",
    "RankPlan",
    "Refusal",
    "Subject",
    "check",
    "choose",
    "foresee",
    "look",
    "look_at_config",
    "named",
    "plan",
    "probes",
    "refusals",
    "seen",
]
