"""Validators of models: their names, the keys that fit their engine and task, their storage, and adapters' targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from appliance.config.models import MODEL_CONFIGS
from appliance.config.raw_config import RawConfig, items
from appliance.config.source_location import DataPath, Diagnostic
from appliance.config.storage import SCHEMES
from appliance.core.suggestions import did_you_mean, known_names
from appliance.core.uri import scheme_of

# The keys of a model whose engine is a Python class.
_PYTHON_MODEL_KEYS = frozenset({"name", "aliases", "class", "storage", "engine", "limits", "slo", "on_failure"})

Model = dict[str, Any]  # Any: what a file holds before it is checked


def names_are_unique(raw: RawConfig) -> Iterator[Diagnostic]:
    """A name belongs to one model, as its name, an alias or an adapter's name."""
    seen: dict[str, DataPath] = {}
    for path in name_paths(raw):
        name = raw.find(path)
        if not isinstance(name, str):
            continue
        if name in seen:
            line = raw.location(seen[name]).line
            where = "" if line is None else f" on line {line}"
            message = f"{raw.quote(path)} is taken{where}; must be unlike all other names and aliases"
            yield raw.diagnostic(path, message)
        seen.setdefault(name, path)


def name_paths(raw: RawConfig) -> Iterator[DataPath]:
    """The paths of the names that clients may send: a model's own, its aliases, and its adapters'."""
    for path, model in raw.models():
        yield from [(*path, "name")] if "name" in model else []
        yield from ((*path, "aliases", index) for index, _ in items(model.get("aliases")))
        for index, adapter in items(model.get("adapters")):
            if isinstance(adapter, dict) and "name" in adapter:
                yield (*path, "adapters", index, "name")


def python_models_have_no_vllm_keys(raw: RawConfig) -> Iterator[Diagnostic]:
    """Keys that configure vLLM are not set for a model whose engine is a Python class."""
    for path, model in raw.models():
        engine, config = model.get("engine"), MODEL_CONFIGS.get(str(model.get("class")))
        if not isinstance(engine, dict) or "python" not in engine or config is None:
            continue
        known = {field.alias or name for name, field in config.model_fields.items()}
        for key in known & model.keys() - _PYTHON_MODEL_KEYS:
            yield raw.key_diagnostic((*path, key), "shapes vLLM, and engine.python computes; must go under engine.args")


def encoder_keys_fit_the_task(raw: RawConfig) -> Iterator[Diagnostic]:
    """Keys that shape embeddings are only set for a model that embeds."""
    for path, model in raw.models():
        task = model.get("task")
        if model.get("class") == "encoder" and task in ("rerank", "classify", "token_classify"):
            for key in {"normalize", "dimensions"} & model.keys():
                message = f"shapes embeddings, and the task is {task}; must be left out"
                yield raw.key_diagnostic((*path, key), message)


def schemes_are_known(raw: RawConfig) -> Iterator[Diagnostic]:
    """Each URI has a known scheme, or is a plain path."""
    for path in _uri_paths(raw):
        uri = raw.find(path)
        scheme = scheme_of(uri) if isinstance(uri, str) else None
        if scheme is not None and scheme not in SCHEMES:
            hint = _suggestion(raw, path, scheme, SCHEMES)
            hint = hint or f"{known_names('schemes', SCHEMES)}, and plain paths need none"
            yield raw.diagnostic(path, f"is {raw.quote(path)}, of an unknown scheme; {hint}")


def _uri_paths(raw: RawConfig) -> Iterator[DataPath]:
    for path, model in raw.models():
        yield (*path, "storage", "uri")
        yield (*path, "protocol", "tokenizer", "uri")
        yield (*path, "protocol", "chat", "tokenizer", "uri")
        yield from ((*path, "adapters", index, "storage", "uri") for index, _ in items(model.get("adapters")))


def _suggestion(raw: RawConfig, path: DataPath, word: str, known: Mapping[str, Any] | frozenset[str]) -> str:
    # A suggestion would give most of a secret away.
    return "" if raw.secrets(path) else did_you_mean(word, known)


def targets_complete_prompts(raw: RawConfig) -> Iterator[Diagnostic]:
    """The target of an adapter is another model that completes prompts, and no cycle leads back."""
    models = _models_by_name(raw)
    for path, model in raw.models():
        target, where = model.get("target"), (*path, "target")
        if model.get("class") != "adapter" or not isinstance(target, str):
            continue
        kind = raw.find((*path, "protocol", "kind"))
        if kind in ("oip", "http"):
            message = f"is {raw.quote(where)}, and models of this file speak OpenAI's protocol; "
            yield raw.diagnostic(where, f"{message}must be a mapping with the url of what speaks {kind}")
        elif target not in models:
            hint = _suggestion(raw, where, target, models) or known_names("models", models)
            yield raw.diagnostic(where, f"is {raw.quote(where)}, the name of no model here; {hint}")
        elif models[target] is model:
            yield raw.diagnostic(where, f"is {raw.quote(where)}, this model itself; must be another one")
        elif cycle := _cycle(model, models):
            message = f"goes in a circle, {' -> '.join(cycle)}; must lead to a model that computes"
            yield raw.diagnostic(where, message)
        elif not _completes(models[target]):
            message = f"is {raw.quote(where)} of class {models[target].get('class')}, which does not complete prompts"
            yield raw.diagnostic(where, f"{message}; must be one that does")


def _models_by_name(raw: RawConfig) -> dict[str, Model]:
    """Every model by each of its names; of equal names the first counts."""
    models: dict[str, Model] = {}
    for path in name_paths(raw):
        if isinstance(name := raw.find(path), str):
            models.setdefault(name, raw.find(path[:2]))
    return models


def _cycle(model: Model, models: Mapping[str, Model]) -> list[str]:
    """The names on the way from a model back to itself; none where the way ends, or never comes back."""
    names, at = [str(model.get("name"))], model
    while isinstance(target := at.get("target"), str) and target in models and len(names) <= len(models):
        at = models[target]
        names.append(str(at.get("name")))
        if at is model:
            return names
    return []


def _completes(model: Model) -> bool:
    protocol = model.get("protocol")
    if model.get("class") == "adapter" and isinstance(protocol, dict):
        return protocol.get("kind") == "completions" or "completions" in protocol
    return model.get("class") not in ("adapter", "encoder")
