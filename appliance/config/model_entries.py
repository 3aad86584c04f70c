"""The models of a draft by their names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from appliance.config.raw_config import RawConfig
from appliance.config.source_location import DataPath


def model_entries(draft: RawConfig) -> Iterator[tuple[DataPath, dict[str, Any]]]:  # Any: not checked yet
    """The entries of ``models:`` that are mappings at all."""
    models = draft.data.get("models")
    for index, model in enumerate(models if isinstance(models, list) else ()):
        if isinstance(model, dict):
            yield ("models", index), model


def named_models(draft: RawConfig) -> Iterator[tuple[DataPath, str, str]]:
    """DataPath, name and class of each model that says both."""
    for path, model in model_entries(draft):
        name, class_name = model.get("name"), model.get("class")
        if isinstance(name, str) and isinstance(class_name, str):
            yield path, name, class_name


def name_paths(draft: RawConfig) -> Iterator[DataPath]:
    """Where names stand that clients may send: a model's own, its aliases, its adapters'."""
    for path, model in model_entries(draft):
        yield from [(*path, "name")] if "name" in model else []
        yield from ((*path, "aliases", index) for index, _ in items(model.get("aliases")))
        for index, adapter in items(model.get("adapters")):
            if isinstance(adapter, dict) and "name" in adapter:
                yield (*path, "adapters", index, "name")


def items(value: Any) -> Iterator[tuple[int, Any]]:  # Any: not checked yet
    """The entries of a list with their indices; none of anything else."""
    yield from enumerate(value if isinstance(value, list) else ())
