"""Rules about the names of models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from appliance.config.raw_config import RawConfig, items
from appliance.config.source_location import DataPath, Diagnostic


def names_are_unique(raw: RawConfig) -> Iterator[Diagnostic]:
    """A name leads to one model, be it a model's own, an alias or an adapter's."""
    seen: dict[str, DataPath] = {}
    for path in name_paths(raw):
        name = raw.get(path)
        if not isinstance(name, str):
            continue
        if name in seen:
            line = raw.location(seen[name]).line
            where = "" if line is None else f" on line {line}"
            yield raw.diagnostic(path, f"{raw.quote(path)} is taken{where}; must be unlike all other names and aliases")
        seen.setdefault(name, path)


def models_by_name(raw: RawConfig) -> dict[str, dict[str, Any]]:  # Any: not checked yet
    """Every model by each of its names, those of its adapters among them; of equal names the first counts."""
    models: dict[str, dict[str, Any]] = {}
    for path in name_paths(raw):
        if isinstance(name := raw.find(path), str):
            models.setdefault(name, raw.find(path[:2]))
    return models


def name_paths(raw: RawConfig) -> Iterator[DataPath]:
    """Where the names stand that clients may send: a model's own, its aliases, and its adapters'."""
    for path, model in raw.models():
        yield from [(*path, "name")] if "name" in model else []
        yield from ((*path, "aliases", index) for index, _ in items(model.get("aliases")))
        for index, adapter in items(model.get("adapters")):
            if isinstance(adapter, dict) and "name" in adapter:
                yield (*path, "adapters", index, "name")
