"""
The config: one YAML file, checked, as one frozen object.
"""

from __future__ import annotations

from appliance.config.difference import Difference, differences
from appliance.config.generator import schema_of
from appliance.config.load import Loaded, load
from appliance.config.root import Config

__all__ = ["Config", "Difference", "Loaded", "differences", "load", "schema_of"]
