"""The config: one YAML file, validated, as one frozen object."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from appliance.config.diff import Difference, differences
    from appliance.config.json_schema import schema_of
    from appliance.config.loader import LoadedConfig, load
    from appliance.config.root import Config

__all__ = ["Config", "Difference", "LoadedConfig", "differences", "load", "schema_of"]

_MODULES = {
    "Config": "appliance.config.root",
    "Difference": "appliance.config.diff",
    "LoadedConfig": "appliance.config.loader",
    "differences": "appliance.config.diff",
    "load": "appliance.config.loader",
    "schema_of": "appliance.config.json_schema",
}


def __getattr__(name: str) -> Any:
    # Packages that need one part of the config do not import the rest.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
