"""
What a model comes to in a layout, known before its first byte is fetched: `look` at its files, then `plan`.
"""

from __future__ import annotations

from appliance.plan.choosing import choose
from appliance.plan.estimate import Demand
from appliance.plan.foreseeing import check, foresee
from appliance.plan.hardware import Hardware, named, seen
from appliance.plan.outcome import Plan, RankPlan
from appliance.plan.planning import plan
from appliance.plan.refusals import Refusal, refusals
from appliance.plan.subject import Subject, look, look_at_config
from appliance.plan.timing import USUAL_GBIT, probes

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
