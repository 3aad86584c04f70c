"""LiteLLM's `config.yaml` as models of the class `proxy`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import NoneType
from typing import Any, NamedTuple

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from appliance.config.raw_config import DataPath, RawConfig, items
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

_STRATEGIES = {"simple-shuffle": "round_robin", "least-busy": "least_inflight"}

_OTHER = "is a setting of LiteLLM's that this server does not have"
_REASONS: Mapping[str, str] = {
    "rpm": "is a limit of one upstream; server.api_keys[].limits limits clients",
    "tpm": "is a limit of one upstream; server.api_keys[].limits limits clients",
    "fallbacks": "a model has several upstreams, but no other model in its place",
    "context_window_fallbacks": "a model has several upstreams, but no other model in its place",
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
    for section in [each for each in raw.data if each != "model_list"]:
        if not isinstance(raw.data[section], dict | NoneType):
            _drop(raw, draft, (section,))
        for key in mapping(raw.data[section]):
            _put_setting(raw, draft, models, (section, key))


def _add_entry(
    raw: RawConfig, draft: Draft, models: dict[str, CommentedMap], index: int, entry: Mapping[str, Any]
) -> None:
    path: DataPath = ("model_list", index)
    name, parameters = str(entry.get("model_name")), dict(mapping(entry.get("litellm_params")))
    provider, _, upstream_name = str(parameters.pop("model", "")).partition("/")
    if not upstream_name:
        provider, upstream_name = "openai", provider
    known = PROVIDERS.get(provider)
    url = parameters.pop("api_base", None) or parameters.pop("base_url", None) or (known.url if known else None)
    if known is None or url is None or "*" in name:
        draft.drop(raw.location((*path, "model_name")).line, f"model_list[{index}] ({name})", _refusal(provider, name))
        return
    upstream: dict[str, Any] = {"url": _reference(_base_url(provider, str(url))), "model": upstream_name}
    key = parameters.pop("api_key", None)
    if key:
        upstream["api_key"] = _secret(raw, draft, (*path, "litellm_params", "api_key"), f"API_KEY_{index + 1}")
    elif known.key:
        # LiteLLM sends none to a server of one's own where the variable is not set.
        upstream["api_key"] = env(known.key, is_optional=known.url is None)
    model = models.get(name) or models.setdefault(name, draft.add_model(name, "proxy"))
    _put_parameters(raw, draft, model, upstream, path, parameters)
    model.setdefault("upstreams", CommentedSeq()).append(escaped(upstream))
    for other in entry.keys() - {"model_name", "litellm_params"}:
        _drop(raw, draft, (*path, other))


def _refusal(provider: str, name: str) -> str:
    if "*" in name:
        return "a model has a name; list each model"
    if provider in PROVIDERS:
        return "has no api_base, which must be the URL of the upstream"
    return f"{provider} does not speak OpenAI's protocol at an address that is known here"


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
        if key == "timeout" and isinstance(value, int | float):
            upstream["timeouts"] = {"total_seconds": value}
        elif key in ("weight", "max_retries", "num_retries"):
            upstream.update({"weight": value} if key == "weight" else {})
            if key != "weight":
                draft.put("retry.attempts", value, into=model)
        elif key == "extra_headers" and isinstance(value, dict):
            where: DataPath = (*path, "litellm_params", key)
            variables = {name: re.sub(r"\W", "_", str(name)).upper() for name in value}
            upstream["headers"] = {name: _secret(raw, draft, (*where, name), variables[name]) for name in value}
        elif key in _REQUEST_FIELDS:
            for field_name, field_value in (
                value if isinstance(value, dict) and key == "extra_body" else {key: value}
            ).items():
                draft.put(("request", "defaults", field_name), field_value, into=model)
        else:
            _drop(raw, draft, (*path, "litellm_params", key))


def _put_setting(raw: RawConfig, draft: Draft, models: Mapping[str, CommentedMap], path: DataPath) -> None:
    """Put one of LiteLLM's settings for all models."""
    value, key = raw.find(path), str(path[-1])
    if key in _KEYS:
        for model in models.values():
            # What an entry of the list says goes over it.
            if _KEYS[key] != "retry.attempts" or "retry" not in model:
                draft.put(_KEYS[key], value, into=model)
    elif key == "routing_strategy" and str(value) in _STRATEGIES:
        for model in models.values():
            draft.put("balance", _STRATEGIES[str(value)], into=model)
    elif key == "model_group_alias" and isinstance(value, dict):
        for alias, name in value.items():
            if str(name) in models:
                models[str(name)].setdefault("aliases", []).append(alias)
            else:
                draft.drop(raw.location((*path, alias)).line, f"{_dotted(path)}.{alias}", f"there is no model {name}")
    elif key == "master_key":
        entry = {"name": "master", "value": _secret(raw, draft, path, "LITELLM_MASTER_KEY"), "admin": True}
        draft.put("server.api_keys", [entry])
    else:
        _drop(raw, draft, path)


def _drop(raw: RawConfig, draft: Draft, path: DataPath) -> None:
    reason = next((_REASONS[str(part)] for part in reversed(path) if part in _REASONS), _OTHER)
    draft.drop(raw.location(path).line, _dotted(path), reason)


def _dotted(path: DataPath) -> str:
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", ".".join(map(str, path)))


def _base_url(provider: str, url: str) -> str:
    """The base URL of an upstream; Ollama serves OpenAI's protocol below `/v1`."""
    return f"{url.rstrip('/')}/v1" if provider.startswith("ollama") and not url.rstrip("/").endswith("/v1") else url


def _reference(text: str) -> str:
    """A value that LiteLLM takes from a variable (`os.environ/NAME`), as a reference."""
    return env(text.removeprefix("os.environ/")) if text.startswith("os.environ/") else text


def _secret(raw: RawConfig, draft: Draft, path: DataPath, variable: str) -> str:
    """A reference for a secret, which the config does not spell out."""
    text = str(raw.find(path))
    if text.startswith("os.environ/"):
        return _reference(text)
    reason = f"is not spelled out; set the variable {variable} for `appliance serve`"
    draft.drop(raw.location(path).line, _dotted(path), reason)
    return env(variable)
