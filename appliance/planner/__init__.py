"""
What a model comes to in a layout, known before its first byte is fetched: `inspect_model` at its files, then `plan`.
"""

from __future__ import annotations

from appliance.planner.constraints import ConstraintViolation, constraint_violations
from appliance.planner.hardware import Hardware, detect_hardware, named_hardware
from appliance.planner.layout_search import search_layout
from appliance.planner.load_time import USUAL_GBIT, probes
from appliance.planner.memory_estimate import EngineRequirements
from appliance.planner.memory_plan import Plan, RankPlan
from appliance.planner.model_info import ModelInfo, inspect_config, inspect_model
from appliance.planner.planner import plan
from appliance.planner.precheck import check, precheck_layout

__all__ = [
    "USUAL_GBIT",
    "ConstraintViolation",
    "EngineRequirements",
    "Hardware",
    "ModelInfo",
    "Plan",
    "RankPlan",
    "check",
    "constraint_violations",
    "detect_hardware",
    "inspect_config",
    "inspect_model",
    "named_hardware",
    "plan",
    "precheck_layout",
    "probes",
    "search_layout",
]
