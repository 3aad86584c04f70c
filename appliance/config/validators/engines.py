"""Rules about engines, and about the keys that only some of them take."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.config.engine import OWNED, EngineConfig
from appliance.config.model_entries import model_entries
from appliance.config.models import MODEL_CONFIGS
from appliance.config.raw_config import RawConfig
from appliance.config.source_location import Diagnostic
from appliance.core.suggestions import did_you_mean

# The keys of a model that a class of the user's computes.
_OF_PYTHON = frozenset({"name", "aliases", "class", "storage", "engine", "limits", "slo", "on_failure"})


def engine_arguments_are_free(draft: RawConfig) -> Iterator[Diagnostic]:
    """What the config says in a place of its own is not said again among vLLM's arguments."""
    for path, model in model_entries(draft):
        engine = model.get("engine")
        args = engine.get("args") if isinstance(engine, dict) and "python" not in engine else None
        for name in args if isinstance(args, dict) else ():
            if name in OWNED:
                yield draft.key_fault((*path, "engine", "args", name), f"is not set here; {OWNED[name]}")


def engines_name_their_class(draft: RawConfig) -> Iterator[Diagnostic]:
    """A key that is nearly `python` is not one of vLLM's, for which the schema takes it."""
    for path, model in model_entries(draft):
        engine = model.get("engine")
        for key in engine if isinstance(engine, dict) and "python" not in engine else ():
            hint = did_you_mean(str(key), ("python", *EngineConfig.model_fields))
            if '"python"' in hint:
                yield draft.key_fault((*path, "engine", key), f"unknown key; {hint}")


def python_models_have_their_own_keys(draft: RawConfig) -> Iterator[Diagnostic]:
    """What shapes vLLM is not said of a model that a class of the user's computes."""
    for path, model in model_entries(draft):
        engine, config = model.get("engine"), MODEL_CONFIGS.get(str(model.get("class")))
        if not isinstance(engine, dict) or "python" not in engine or config is None:
            continue
        known = {field.alias or name for name, field in config.model_fields.items()}
        for key in known & model.keys() - _OF_PYTHON:
            yield draft.key_fault((*path, key), "shapes vLLM, and engine.python computes; must go under engine.args")


def encoder_keys_fit_the_task(draft: RawConfig) -> Iterator[Diagnostic]:
    """What shapes embeddings is only said of a model that embeds."""
    for path, model in model_entries(draft):
        task = model.get("task")
        if model.get("class") != "encoder" or task not in ("rerank", "classify", "token_classify"):
            continue
        for key in ("normalize", "dimensions"):
            if key in model:
                yield draft.key_fault((*path, key), f"shapes embeddings, and the task is {task}; must be left out")
