"""
Memory planning before the download: `inspect_model` reads the headers of a model, `plan` tells what a layout needs.
"""

from __future__ import annotations

from appliance.planner.constraints import ConstraintViolation, constraint_violations
from appliance.planner.hardware import Hardware, detect_hardware, named_hardware
from appliance.planner.layout_search import search_layout
from appliance.planner.memory_estimate import EngineRequirements, RankPlan
from appliance.planner.model_info import ModelInfo, inspect_config, inspect_model
from appliance.planner.planner import DEFAULT_GBIT, Plan, check, plan, precheck_layout, probes

__all__ = [
    "DEFAULT_GBIT",
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
