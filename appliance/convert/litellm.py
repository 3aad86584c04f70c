"""LiteLLM's `config.yaml` as models of the class `proxy`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import NoneType
from typing import Any, NamedTuple

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from appliance.config.raw_config import DataPath, RawConfig, dotted, items
from appliance.convert.draft import Draft, env, escaped, mapping


class Provider(NamedTuple):
    """A provider that speaks OpenAI's protocol: its base URL, and LiteLLM's variable of its key."""

    url: str | None
    key: str | None


# Source: `litellm.get_llm_provider`, which a test asks.
PROVIDERS: Mapping[str, Provider] = {
    "openai": Provider("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "custom_openai": Provider(None, None),
    "hosted_vllm": Provider(None, "HOSTED_VLLM_API_KEY"),
    "litellm_proxy": Provider(None, "LITELLM_PROXY_API_KEY"),
    "lm_studio": Provider(None, "LM_STUDIO_API_KEY"),
    "llamafile": Provider("http://127.0.0.1:8080/v1", None),
    "ollama": Provider("http://localhost:11434/v1", None),
    "ollama_chat": Provider("http://localhost:11434/v1", None),
    "groq": Provider("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "mistral": Provider("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "deepseek": Provider("https://api.deepseek.com/beta", "DEEPSEEK_API_KEY"),
    "openrouter": Provider("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "together_ai": Provider("https://api.together.xyz/v1", "TOGETHERAI_API_KEY"),
    "fireworks_ai": Provider("https://api.fireworks.ai/inference/v1", "FIREWORKS_AI_API_KEY"),
    "xai": Provider("https://api.x.ai/v1", "XAI_API_KEY"),
    "cerebras": Provider("https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    "nvidia_nim": Provider("https://integrate.api.nvidia.com/v1", "NVIDIA_NIM_API_KEY"),
    "gemini": Provider("https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY"),
}

# Names that LiteLLM takes for models of OpenAI without `openai/` before them.
_OPENAI_MODELS = re.compile(
    r"gpt-|chatgpt-|o\d|text-embedding-|text-moderation|omni-|dall-e|whisper-|tts-|davinci|babbage"
)

# Parameters of requests, which are defaults of a proxy's requests.
_REQUEST_FIELDS = frozenset(
    {"temperature", "top_p", "max_tokens", "max_completion_tokens", "presence_penalty", "frequency_penalty", "seed"}
    | {"stop", "n", "user", "reasoning_effort", "response_format", "extra_body"}
)

# Settings for all models that are keys of each model here.
_KEYS = {
    "num_retries": "retry.attempts",
    "allowed_fails": "breaker.failures",
    "cooldown_time": "breaker.open_seconds",
}

# The reasons for a fallback; None is every reason, and so the default.
_FALLBACKS: Mapping[str, list[str] | None] = {
    "fallbacks": None,
    "default_fallbacks": None,
    "context_window_fallbacks": ["context_length"],
}

_STRATEGIES = {"simple-shuffle": "round_robin", "least-busy": "least_inflight"}

_OTHER = "is a setting of LiteLLM's that this server does not have"
_REASONS: Mapping[str, str] = {
    "rpm": "is a limit of one upstream; server.api_keys[].limits limits clients",
    "tpm": "is a limit of one upstream; server.api_keys[].limits limits clients",
    "content_policy_fallbacks": "what a model refuses to write is its answer",
    **dict.fromkeys(
        ("callbacks", "success_callback", "failure_callback"),
        "metrics are at /metrics; set tracing for spans, and logging.payloads for requests and responses",
    ),
    "include": "the files that it names are not read; convert them too",
    "database_url": "keys are in the file, as server.api_keys; there is no database",
    "cache": "set `cache: {}` of each model whose responses may be kept",
    "environment_variables": "set the variables for `appliance serve`",
    "model_info": "is what LiteLLM's pages show of a model",
    "drop_params": "fields are forwarded unchanged; set request.drop for those that an upstream refuses",
}


def convert(raw: RawConfig, draft: Draft) -> None:
    """Convert LiteLLM's config into the draft: one proxy for all entries of the same `model_name`."""
    models: dict[str, CommentedMap] = {}
    for index, entry in items(raw.find(("model_list",))):
        _add_entry(raw, draft, models, index, mapping(entry))
    if models:
        draft.put("server.port", 4000, "LiteLLM's default port")
    known: set[str] = set()
    for section in [each for each in raw.data if each != "model_list"]:
        if not isinstance(raw.data[section], dict | NoneType):
            _drop(raw, draft, (section,))
        for key in mapping(raw.data[section]):
            # `request_timeout` and `timeout` are one setting.
            name = str(key).removeprefix("request_")
            if name in known:
                draft.at(_line(raw, (section, key))).drop(dotted((section, key)), "is set above already")
            else:
                _put_setting(raw, draft, models, (section, key))
            known.add(name)


def _add_entry(
    raw: RawConfig, draft: Draft, models: dict[str, CommentedMap], index: int, entry: Mapping[str, Any]
) -> None:
    path: DataPath = ("model_list", index)
    draft.at(_line(raw, path))
    name, parameters = str(entry.get("model_name")), dict(mapping(entry.get("litellm_params")))
    provider, upstream_name = _provider(str(parameters.pop("model", "")), parameters)
    known = PROVIDERS.get(provider)
    url = parameters.pop("api_base", None) or parameters.pop("base_url", None) or (known.url if known else None)
    if known is None or url is None or "*" in name or "model_name" not in entry:
        draft.drop(f"{dotted(path)} ({name})", _refusal(provider, entry))
        return
    upstream: dict[str, Any] = {"url": _base_url(provider, _reference(str(url))), "model": upstream_name}
    if parameters.pop("api_key", None):
        upstream["api_key"] = _secret(raw, draft, (*path, "litellm_params", "api_key"), f"API_KEY_{index + 1}")
    elif known.key:
        # LiteLLM sends none to a server of one's own where the variable is not set.
        upstream["api_key"] = env(known.key, default="" if known.url is None else None)
    model = models.get(name) or models.setdefault(name, draft.add_model(name, "proxy"))
    _put_parameters(raw, draft, model, upstream, path, parameters)
    model.setdefault("upstreams", CommentedSeq()).append(escaped(upstream))
    for other in entry.keys() - {"model_name", "litellm_params"}:
        _drop(raw, draft, (*path, other))


def _provider(model: str, parameters: Mapping[str, Any]) -> tuple[str, str]:
    """The provider of a model and its name there; without `PROVIDER/` LiteLLM knows the names of OpenAI's models."""
    provider, slash, name = model.partition("/")
    if slash:
        return provider, name
    is_openai = _OPENAI_MODELS.match(model) or parameters.keys() & {"api_base", "base_url"}
    return ("openai" if is_openai else ""), model


def _refusal(provider: str, entry: Mapping[str, Any]) -> str:
    if "*" in str(entry.get("model_name")):
        return "a model has a name; list each model"
    if "model_name" not in entry:
        return "has no model_name"
    if provider in PROVIDERS:
        return "has no api_base, which must be the URL of the upstream"
    return f"{provider or 'its provider'} does not speak OpenAI's protocol at an address that is known here"


def _put_parameters(
    raw: RawConfig,
    draft: Draft,
    model: CommentedMap,
    upstream: dict[str, Any],
    path: DataPath,
    parameters: Mapping[str, Any],
) -> None:
    """Put what LiteLLM says of one upstream."""
    for key, value in parameters.items():
        where: DataPath = (*path, "litellm_params", key)
        draft.at(_line(raw, where))
        if key == "timeout" and isinstance(value, int | float):
            upstream["timeouts"] = {"total_seconds": value}
        elif key == "weight":
            upstream["weight"] = value
        elif key == "order" and isinstance(value, int):
            # LiteLLM counts from 1.
            upstream["priority"] = max(0, value - 1)
        elif key in ("max_retries", "num_retries"):
            _put_once(draft, model, ("retry", "attempts"), value, where)
        elif key == "extra_headers" and isinstance(value, dict):
            variables = {name: re.sub(r"\W", "_", str(name)).upper() for name in value}
            upstream["headers"] = {name: _secret(raw, draft, (*where, name), variables[name]) for name in value}
        elif key in _REQUEST_FIELDS:
            fields = value if isinstance(value, dict) and key == "extra_body" else {key: value}
            for name, each in fields.items():
                _put_once(draft, model, ("request", "defaults", name), _reference(each), where)
        else:
            _drop(raw, draft, where)


def _put_once(draft: Draft, model: CommentedMap, path: DataPath, value: Any, where: DataPath) -> None:
    """Put what one upstream has for the whole model, unless another upstream has something else."""
    node = model
    for part in path[:-1]:
        node = node.get(part, {})
    if node.get(path[-1], value) == value:
        draft.put(path, value, into=model)
    else:
        draft.drop(dotted(where), "another entry of this model_name has another value, and a model has one")


def _put_setting(raw: RawConfig, draft: Draft, models: Mapping[str, CommentedMap], path: DataPath) -> None:
    """Put one of LiteLLM's settings for all models."""
    value, key = raw.find(path), str(path[-1])
    draft.at(_line(raw, path))
    if key == "model_group_alias" and isinstance(value, dict):
        for alias, name in value.items():
            if str(name) in models:
                models[str(name)].setdefault("aliases", []).append(escaped(alias))
            else:
                draft.at(_line(raw, (*path, alias))).drop(dotted((*path, alias)), f"there is no model {name}")
    elif key in _FALLBACKS and isinstance(value, list):
        _put_fallbacks(raw, draft, models, path)
    elif key == "master_key":
        entry = {"name": "master", "value": _secret(raw, draft, path, "LITELLM_MASTER_KEY"), "admin": True}
        draft.put("server.api_keys", [entry])
    elif not all(_put_for_all(draft, model, key, value) for model in models.values()):
        _drop(raw, draft, path)


def _put_fallbacks(raw: RawConfig, draft: Draft, models: Mapping[str, CommentedMap], path: DataPath) -> None:
    """Put the fallbacks of each model, or those of all models."""
    for index, entry in items(raw.find(path)):
        where = (*path, index)
        by_name = entry if isinstance(entry, dict) else {"*": entry}
        for name, targets in by_name.items():
            draft.at(_line(raw, where))
            names = [each for each in models if each not in by_name] if name == "*" else [str(name)]
            for target in targets if isinstance(targets, list) else [targets]:
                for each in names:
                    _put_fallback(draft, models, each, str(target), where)


def _put_fallback(draft: Draft, models: Mapping[str, CommentedMap], name: str, target: str, where: DataPath) -> None:
    key = str(where[1])
    if name not in models or target not in models:
        draft.drop(dotted(where), f"there is no model {name if name not in models else target}")
    elif _leads_to(models, target, name):
        # A default of all models is none of its own.
        if key != "default_fallbacks" or target != name:
            draft.drop(dotted(where), f"{target} falls back to {name} already, and a circle has no end")
    else:
        on = _FALLBACKS[key]
        fallbacks = models[name].setdefault("fallback", CommentedSeq())
        if any(each["model"] == target and each.get("on", on) == on for each in fallbacks):
            return
        # Those for one reason come before those for all.
        first = next((at for at, each in enumerate(fallbacks) if on and "on" not in each), len(fallbacks))
        fallbacks.insert(first, escaped({"model": target} | ({"on": on} if on else {})))


def _leads_to(models: Mapping[str, CommentedMap], start: str, end: str) -> bool:
    return start == end or any(_leads_to(models, each["model"], end) for each in models[start].get("fallback", ()))


def _put_for_all(draft: Draft, model: CommentedMap, key: str, value: Any) -> bool:
    """Put a setting of all models into one of them, unless its entry says otherwise; whether there is a key for it."""
    if key in _KEYS:
        if _KEYS[key] != "retry.attempts" or "retry" not in model:
            draft.put(_KEYS[key], value, into=model)
    elif key in ("request_timeout", "timeout") and isinstance(value, int | float):
        for upstream in model["upstreams"]:
            upstream.setdefault("timeouts", CommentedMap({"total_seconds": value}))
    elif key == "routing_strategy" and str(value) in _STRATEGIES:
        draft.put("balance", _STRATEGIES[str(value)], into=model)
    else:
        return False
    return True


def _drop(raw: RawConfig, draft: Draft, path: DataPath) -> None:
    reason = next((_REASONS[str(part)] for part in reversed(path) if part in _REASONS), _OTHER)
    draft.at(_line(raw, path)).drop(dotted(path), reason)


def _line(raw: RawConfig, path: DataPath) -> int:
    return (raw.key_locations.get(path) or raw.location(path)).line


def _base_url(provider: str, url: str) -> str:
    """The base URL of an upstream; Ollama serves OpenAI's protocol below `/v1`."""
    return f"{url.rstrip('/')}/v1" if provider.startswith("ollama") and not url.rstrip("/").endswith("/v1") else url


def _reference(value: Any) -> Any:
    """The value, with references for what LiteLLM takes from a variable (`os.environ/NAME`)."""
    if isinstance(value, dict):
        return {key: _reference(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_reference(each) for each in value]
    is_variable = isinstance(value, str) and value.startswith("os.environ/")
    return env(value.removeprefix("os.environ/")) if is_variable else value


def _secret(raw: RawConfig, draft: Draft, path: DataPath, variable: str) -> str:
    """A reference for a secret, which the config does not spell out."""
    text = str(raw.find(path))
    if text.startswith("os.environ/"):
        return str(_reference(text))
    reason = f"is not spelled out; set the variable {variable} for `appliance serve`"
    draft.at(_line(raw, path)).drop(dotted(path), reason)
    return env(variable)
