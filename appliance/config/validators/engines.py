"""Rules about engines, and about the keys that only some of them take."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.config.models import MODEL_CONFIGS
from appliance.config.raw_config import RawConfig
from appliance.config.source_location import Diagnostic

# The keys of a model that a class of the user's computes.
_OF_PYTHON = frozenset({"name", "aliases", "class", "storage", "engine", "limits", "slo", "on_failure"})


def python_models_have_their_own_keys(raw: RawConfig) -> Iterator[Diagnostic]:
    """What shapes vLLM is not said of a model that a class of the user's computes."""
    for path, model in raw.models():
        engine, config = model.get("engine"), MODEL_CONFIGS.get(str(model.get("class")))
        if not isinstance(engine, dict) or "python" not in engine or config is None:
            continue
        known = {field.alias or name for name, field in config.model_fields.items()}
        for key in known & model.keys() - _OF_PYTHON:
            yield raw.key_diagnostic((*path, key), "shapes vLLM, and engine.python computes; must go under engine.args")


def encoder_keys_fit_the_task(raw: RawConfig) -> Iterator[Diagnostic]:
    """What shapes embeddings is only said of a model that embeds."""
    for path, model in raw.models():
        task = model.get("task")
        if model.get("class") != "encoder" or task not in ("rerank", "classify", "token_classify"):
            continue
        for key in ("normalize", "dimensions"):
            if key in model:
                yield raw.key_diagnostic((*path, key), f"shapes embeddings, and the task is {task}; must be left out")
