"""Rules about the names of models."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.config.model_entries import name_paths
from appliance.config.raw_config import RawConfig
from appliance.config.source_location import DataPath, Diagnostic


def names_are_unique(draft: RawConfig) -> Iterator[Diagnostic]:
    """A name leads to one model, be it a model's own, an alias or an adapter's."""
    seen: dict[str, DataPath] = {}
    for path in name_paths(draft):
        name = draft.get(path)
        if not isinstance(name, str):
            continue
        if name in seen:
            line = draft.place(seen[name]).line
            where = "" if line is None else f" on line {line}"
            yield draft.fault(path, f"{draft.quote(path)} is taken{where}; must be unlike all other names and aliases")
        seen.setdefault(name, path)
