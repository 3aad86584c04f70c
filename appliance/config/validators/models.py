"""Validators of models: names, the keys that fit their engine and task, targets, and upstreams."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from appliance.config.engine import FRAMEWORKS, ServingConfig
from appliance.config.models import MODEL_CONFIGS
from appliance.config.raw_config import DataPath, Diagnostic, RawConfig, items
from appliance.config.upstreams import HEADER_NAME
from appliance.core.http import FRAMING_HEADERS, HOP_BY_HOP_HEADERS, has_valid_address
from appliance.core.model import OPENAI_PATHS

# The keys of a model whose engine is a Python class.
_PYTHON_MODEL_KEYS = frozenset(
    {"name", "aliases", "class", "storage", "engine", "request", "limits", "slo", "fallback", "on_failure"}
)

# Options of serving that encoders have, too.
_OF_ENCODERS = frozenset(
    {"chat_template_content_format", "default_chat_template_kwargs", "enable_tokenizer_info_endpoint"}
)

# The longest first: one may end in another. People often paste `/models`, which shows whether a server is there.
_ROUTES = sorted(
    {path.removeprefix("/v1") for paths in OPENAI_PATHS.values() for path in paths} | {"/models", "/v1/chat"},
    key=len,
    reverse=True,
)
# Neither may be in a URL, and manuals have both around what is to be replaced.
_PLACEHOLDER = re.compile(r"\{[^{}]*\}|<[^<>]*>")
_SHELL_VARIABLE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
_VERSION_TWICE = re.compile(r"/(v\d+)/\1$")
_OLLAMA_ROUTE = re.compile(r"/api/(?:generate|chat|embed|embeddings|tags)$")

Model = dict[str, Any]  # Any: what a file holds before it is checked


def names_are_unique(raw: RawConfig) -> Iterator[Diagnostic]:
    """A name belongs to one model, as its name, an alias or an adapter's name."""
    yield from _repetitions(raw, names(raw), "must be unlike all other names and aliases")


def _repetitions(raw: RawConfig, named: Iterable[tuple[DataPath, str]], must: str) -> Iterator[Diagnostic]:
    seen: dict[str, DataPath] = {}
    for path, name in named:
        if name in seen:
            line = raw.location(seen[name]).line
            where = f" on line {line}" if line else ""
            yield raw.diagnostic(path, f"{raw.quote(path)} is taken{where}; {must}")
        seen.setdefault(name, path)


def upstream_names_are_unique(raw: RawConfig) -> Iterator[Diagnostic]:
    """Probes, logs and metrics tell the upstreams of a model apart by their names."""
    for path, model in raw.models():
        paths = [(*path, "upstreams", index, "name") for index, _ in items(model.get("upstreams"))]
        named = [(each, name) for each in paths if isinstance(name := raw.find(each), str)]
        yield from _repetitions(raw, named, "must be unlike the names of the model's other upstreams")


def request_fields_are_kept_or_dropped(raw: RawConfig) -> Iterator[Diagnostic]:
    """A field that `override` sets is not dropped."""
    owners = [*_upstream_paths(raw), *(path for path, _ in raw.models())]
    owners += [(*path, "aliases", index) for path, model in raw.models() for index, _ in items(model.get("aliases"))]
    for owner in owners:
        override = raw.find((*owner, "request", "override"))
        for index, field in items(raw.find((*owner, "request", "drop"))):
            if isinstance(override, dict) and isinstance(field, str) and field in override:
                where = (*owner, "request", "drop", index)
                yield raw.diagnostic(where, f"is {raw.quote(where)}, which override sets; must be in one of the two")


def names(raw: RawConfig) -> Iterator[tuple[DataPath, str]]:
    """The names that clients may send: a model's own, its aliases, and its adapters'."""
    for path, model in raw.models():
        paths: list[DataPath] = [(*path, "name")]
        for index, alias in items(model.get("aliases")):
            paths.append((*path, "aliases", index, "name") if isinstance(alias, dict) else (*path, "aliases", index))
        paths += [(*path, "adapters", index, "name") for index, _ in items(model.get("adapters"))]
        yield from ((each, name) for each in paths if isinstance(name := raw.find(each), str))


def python_models_have_no_vllm_keys(raw: RawConfig) -> Iterator[Diagnostic]:
    """Keys that configure vLLM are not set for a model whose engine is a Python class."""
    for path, model in raw.models():
        engine, config = model.get("engine"), MODEL_CONFIGS.get(str(model.get("class")))
        if not isinstance(engine, dict) or "python" not in engine or config is None:
            continue
        known = {field.alias or name for name, field in config.model_fields.items()}
        for key in known & model.keys() - _PYTHON_MODEL_KEYS:
            yield raw.key_diagnostic((*path, key), "shapes vLLM, and engine.python computes; must go under engine.args")


def onnx_models_have_no_vllm_keys(raw: RawConfig) -> Iterator[Diagnostic]:
    """Keys that configure vLLM, and tasks that only vLLM has, are not set for an encoder in ONNX Runtime."""
    for path, model in raw.models():
        if model.get("class") != "encoder" or raw.find((*path, "engine", "backend")) != "onnx":
            continue
        if "layout" in model:
            yield raw.key_diagnostic((*path, "layout"), "places vLLM, and engine.backend is onnx; must be left out")
        if model.get("task") == "token_classify":
            message = "is token_classify, and engine.backend: onnx has no such task; must be computed by vllm"
            yield raw.diagnostic((*path, "task"), message)


def pickles_are_allowed(raw: RawConfig) -> Iterator[Diagnostic]:
    """A framework whose files are pickles is only chosen where pickles are allowed."""
    for path, model in raw.models():
        framework, storage = raw.find((*path, "engine", "framework")), model.get("storage")
        config = FRAMEWORKS.get(framework) if isinstance(framework, str) else None
        if (
            model.get("class") != "predictor"
            or config is None
            or not config.is_pickled
            or not isinstance(storage, dict)
        ):
            continue
        if storage.get("allow_pickle", False) is False:
            message = f"is pickled with {framework}, and can run code when it is loaded; must have allow_pickle: true"
            yield raw.diagnostic(
                (*path, "storage"), f"{message} if you trust its author, or else be converted for framework: onnx"
            )


def encoder_keys_fit_the_task(raw: RawConfig) -> Iterator[Diagnostic]:
    """Keys that shape embeddings are only set for a model that embeds."""
    for path, model in raw.models():
        task = model.get("task")
        if model.get("class") == "encoder" and task in ("rerank", "classify", "token_classify"):
            for key in {"normalize", "dimensions"} & model.keys():
                message = f"shapes embeddings, and the task is {task}; must be left out"
                yield raw.key_diagnostic((*path, key), message)


def serving_options_fit_the_class(raw: RawConfig) -> Iterator[Diagnostic]:
    """Options that shape generated text are only set for a model that generates some."""
    for path, model in raw.models():
        serving = raw.find((*path, "engine", "serving"))
        if model.get("class") == "encoder" and isinstance(serving, dict):
            for key in (ServingConfig.model_fields.keys() - _OF_ENCODERS) & serving.keys():
                message = "shapes generated text, and an encoder generates none; must be left out"
                yield raw.key_diagnostic((*path, "engine", "serving", key), message)


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
            others = [name for name, other in models.items() if other is not model]
            message = f"is {raw.quote(where)}, the name of no model here; {raw.hint(where, 'other models', others)}"
            yield raw.diagnostic(where, message)
        elif models[target] is model:
            yield raw.diagnostic(where, f"is {raw.quote(where)}, this model itself; must be another one")
        elif cycle := _cycle(model, target, models, _targets):
            message = f"goes in a circle, {' -> '.join(cycle)}; must lead to a model that computes"
            yield raw.diagnostic(where, message)
        elif not _completes(models[target]):
            message = f"is {raw.quote(where)} of class {models[target].get('class')}, which does not complete prompts"
            yield raw.diagnostic(where, f"{message}; must be one that does")


def _models_by_name(raw: RawConfig) -> dict[str, Model]:
    """Every model by each of its names; of equal names the first counts."""
    models: dict[str, Model] = {}
    for path, name in names(raw):
        models.setdefault(name, raw.find(path[:2]))
    return models


def fallbacks_can_answer(raw: RawConfig) -> Iterator[Diagnostic]:
    """A fallback is another model that supports the operations, and no cycle leads back."""
    models = _models_by_name(raw)
    for path, model in raw.models():
        for index, _ in items(model.get("fallback")):
            where = (*path, "fallback", index, "model")
            name = raw.find(where)
            if not isinstance(name, str):
                continue
            fault = f"is {raw.quote(where)}"
            if name not in models:
                others = [other for other, each in models.items() if each is not model]
                hint = raw.hint(where, "models", others) if others else "there is no other model here"
                yield raw.diagnostic(where, f"{fault}, the name of no model here; {hint}")
            elif models[name] is model:
                yield raw.diagnostic(where, f"{fault}, this model itself; must be another one")
            elif not _kinds(model) & _kinds(models[name]):
                fault += f" of class {models[name].get('class')}, which answers none of this model's requests"
                yield raw.diagnostic(where, f"{fault}; must be one that does")
            elif cycle := _cycle(model, name, models, _successors):
                message = f"goes in a circle, {' -> '.join(cycle)}; must end at a model without such a fallback"
                yield raw.diagnostic(where, message)


def _kinds(model: Model) -> frozenset[str]:
    """What a model answers with; the operations of an encoder depend on its files."""
    kinds = {"generative": {"text"}, "encoder": {"numbers"}, "predictor": {"tensors"}, "proxy": {"text", "numbers"}}
    protocol = model.get("protocol")
    if model.get("class") == "adapter" and isinstance(protocol, dict):
        is_text = protocol.get("kind") == "completions" or protocol.keys() & {"chat", "completions"}
        has_numbers = protocol.keys() & {"embeddings", "rerank"}
        return frozenset(({"text"} if is_text else set()) | ({"numbers"} if has_numbers else set()))
    return frozenset(kinds.get(str(model.get("class")), {"text", "numbers", "tensors"}))


def _targets(model: Model) -> list[object]:
    return [model.get("target")]


def _successors(model: Model) -> list[object]:
    """The names of the models that requests to a model may go on to."""
    return _targets(model) + [
        entry.get("model") for _, entry in items(model.get("fallback")) if isinstance(entry, dict)
    ]


def _cycle(
    model: Model, name: str, models: Mapping[str, Model], next_names: Callable[[Model], list[object]]
) -> list[str]:
    """The names on the shortest way from a model by the one called `name` back to itself; none where there is none."""
    ways: list[list[Model]] = [[model, models[name]]]
    seen: list[Model] = []
    for way in ways:
        for each in next_names(way[-1]):
            other = models.get(each) if isinstance(each, str) else None
            if other is model:
                return [str(step.get("name")) for step in (*way, model)]
            if other is not None and not any(other is known for known in seen):
                seen.append(other)
                ways.append([*way, other])
    return []


def _completes(model: Model) -> bool:
    protocol = model.get("protocol")
    if model.get("class") == "adapter" and isinstance(protocol, dict):
        return protocol.get("kind") == "completions" or "completions" in protocol
    return model.get("class") not in ("adapter", "encoder", "predictor")


def headers_can_be_forwarded(raw: RawConfig) -> Iterator[Diagnostic]:
    """Headers of one connection, or that follow from the body, are not forwarded; the others have valid names."""
    remedy = "which belongs to one connection or its body; must be left out"
    paths = [(*path, "headers", key) for path, _ in raw.models() for key in ("forward", "set", "expose")]
    for path in (*paths, *((*upstream, "headers") for upstream in _upstream_paths(raw))):
        headers = raw.find(path)
        for index, name in items(headers):
            if isinstance(name, str) and name.lower() in HOP_BY_HOP_HEADERS | FRAMING_HEADERS:
                where = (*path, index)
                yield raw.diagnostic(where, f"is {raw.quote(where)}, {remedy}")
        for name in headers if isinstance(headers, dict) else ():
            if re.fullmatch(HEADER_NAME, name) is None:
                message = "is not a name of a header; must be letters, digits, - and _"
                yield raw.key_diagnostic((*path, name), message)
            # Some servers choose by the name in `Host`.
            if name.lower() in (HOP_BY_HOP_HEADERS | FRAMING_HEADERS) - {"host"}:
                yield raw.key_diagnostic((*path, name), f"is not set here, {remedy}")


def addresses_are_bases(raw: RawConfig) -> Iterator[Diagnostic]:
    """URLs have a host, a valid port and no placeholders; those of OpenAI servers no route, which is appended."""
    for upstream in _upstream_paths(raw):
        path = (*upstream, "url")
        url = raw.find(path)
        if not isinstance(url, str):
            continue
        if not has_valid_address(url):
            must = "must be a URL with a host and a port that there can be, such as http://llm:8000/v1"
            yield raw.diagnostic(path, f"is {raw.quote(path)}; {must}")
        base = url.partition("?")[0].rstrip("/")
        if (variable := _SHELL_VARIABLE.search(base)) is not None:
            yield raw.diagnostic(path, f"has {variable[0]}, which nothing fills in; must be ${{env:{variable[1]}}}")
        if _PLACEHOLDER.search(base) is not None:
            yield raw.diagnostic(path, "has a placeholder, which nothing fills in; must be an address, or ${env:NAME}")
        # Other kinds of adapters have paths of their own.
        is_openai = upstream[-1] != "target" or raw.find((*upstream[:-1], "protocol", "kind")) == "completions"
        if is_openai and (message := _route_error(base)):
            yield raw.diagnostic(path, message)


def _route_error(base: str) -> str | None:
    if (version := _VERSION_TWICE.search(base)) is not None:
        return f"ends in {version[0]}, a version twice; must be the base URL, which has it once"
    if (route := _OLLAMA_ROUTE.search(base)) is not None:
        remedy = "must be the base URL of OpenAI's protocol, such as http://ollama:11434/v1"
        return f"ends in {route[0]}, a route of Ollama's own protocol; {remedy}"
    if (ending := next(filter(base.endswith, _ROUTES), None)) is not None:
        return f"ends in {ending}, a route, which is put after it; must be the base URL, which ends before that"
    return None


def _upstream_paths(raw: RawConfig) -> Iterator[DataPath]:
    for path, model in raw.models():
        yield from ((*path, "upstreams", index) for index, _ in items(model.get("upstreams")))
        yield (*path, "target")
