"""Validators of the targets of adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from appliance.config.raw_config import RawConfig
from appliance.config.source_location import Diagnostic
from appliance.config.validators.names import models_by_name
from appliance.core.suggestions import did_you_mean, known_names

Model = dict[str, Any]  # Any: what a file holds before it is checked


def targets_complete_prompts(raw: RawConfig) -> Iterator[Diagnostic]:
    """A target that is a name is that of another model, one that completes prompts, and no cycle leads back."""
    models = models_by_name(raw)
    for path, model in raw.models():
        target, where = model.get("target"), (*path, "target")
        if model.get("class") != "adapter" or not isinstance(target, str):
            continue
        kind = raw.find((*path, "protocol", "kind"))
        if kind in ("oip", "http"):
            message = f"is {raw.quote(where)}, and models of this file speak OpenAI's protocol; "
            yield raw.diagnostic(where, f"{message}must be a mapping with the url of what speaks {kind}")
        elif target not in models:
            hint = "" if raw.secrets(where) else did_you_mean(target, models)
            message = f"is {raw.quote(where)}, the name of no model here; {hint or known_names('models', models)}"
            yield raw.diagnostic(where, message)
        elif models[target] is model:
            yield raw.diagnostic(where, f"is {raw.quote(where)}, this model itself; must be another one")
        elif cycle := _cycle(model, models):
            message = f"goes in a circle, {' -> '.join(cycle)}; must lead to a model that computes"
            yield raw.diagnostic(where, message)
        elif not _completes(models[target]):
            target_class = models[target].get("class")
            message = f"is {raw.quote(where)} of class {target_class}, which does not complete prompts"
            yield raw.diagnostic(where, f"{message}; must be one that does")


def _cycle(model: Model, models: Mapping[str, Model]) -> list[str]:
    """The names on the way from a model back to itself; none where the way ends, or never comes back."""
    names, target_model = [str(model.get("name"))], model
    while isinstance(target := target_model.get("target"), str) and target in models and len(names) <= len(models):
        target_model = models[target]
        names.append(str(target_model.get("name")))
        if target_model is model:
            return names
    return []


def _completes(model: Model) -> bool:
    protocol = model.get("protocol")
    if model.get("class") == "adapter" and isinstance(protocol, dict):
        return protocol.get("kind") == "completions" or "completions" in protocol
    return model.get("class") not in ("adapter", "encoder")
