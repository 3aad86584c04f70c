"""Rules about what is sent to upstreams, and where they are."""

from __future__ import annotations

import re
from collections.abc import Iterator

from appliance.config.raw_config import RawConfig, items
from appliance.config.source_location import DataPath, Diagnostic
from appliance.config.upstreams import HEADER_NAME
from appliance.core.http import FRAMING_HEADERS, HOP_BY_HOP_HEADERS, has_valid_address
from appliance.core.model import OPENAI_PATHS

# The longest first: one may end in another. `/models` is where people look whether a server is there.
_ROUTES = sorted(
    {path.removeprefix("/v1") for paths in OPENAI_PATHS.values() for path in paths} | {"/models", "/v1/chat"},
    key=len,
    reverse=True,
)
_UNFILLED = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")


# Neither may be in a URL, and manuals have both around what is to be replaced.
_PLACEHOLDER = re.compile(r"\{[^{}]*\}|<[^<>]*>")

_TWICE = re.compile(r"/(v\d+)/\1$")
_OLLAMA = re.compile(r"/api/(?:generate|chat|embed|embeddings|tags)$")

_UNMOVED = "which belongs to one connection or its body; must be left out"
_ADDRESS = "must be a URL with a host and a port that there can be, such as http://llm:8000/v1"


def headers_may_travel(raw: RawConfig) -> Iterator[Diagnostic]:
    """What belongs to one connection, or follows from the body, is not a header that upstreams can be sent."""
    for path in _header_paths(raw):
        headers = raw.find(path)
        for index, name in items(headers):
            if isinstance(name, str) and name.lower() in HOP_BY_HOP_HEADERS | FRAMING_HEADERS:
                yield raw.diagnostic((*path, index), f"is {raw.quote((*path, index))}, {_UNMOVED}")
        for name in headers if isinstance(headers, dict) else ():
            if re.fullmatch(HEADER_NAME, name) is None:
                yield raw.key_diagnostic((*path, name), "is no name of a header; must be letters, digits, - and _")
            # Some servers are told apart by the name that is asked for.
            if name.lower() in (HOP_BY_HOP_HEADERS | FRAMING_HEADERS) - {"host"}:
                yield raw.key_diagnostic((*path, name), f"is not set here, {_UNMOVED}")


def addresses_are_possible(raw: RawConfig) -> Iterator[Diagnostic]:
    """Upstreams have a host, and a port that there can be."""
    for config in _upstream_paths(raw):
        url = raw.find((*config, "url"))
        if isinstance(url, str) and not has_valid_address(url):
            yield raw.diagnostic((*config, "url"), f"is {raw.quote((*config, 'url'))}; {_ADDRESS}")


def addresses_are_bases(raw: RawConfig) -> Iterator[Diagnostic]:
    """
    Routes are joined to the URL of a server of OpenAI's protocol, so that it has none itself; no shell fills in a name.
    """
    for config in _upstream_paths(raw):
        path = (*config, "url")
        url = raw.find(path)
        if not isinstance(url, str):
            continue
        if (name := _UNFILLED.search(url.partition("?")[0])) is not None:
            yield raw.diagnostic(path, f"has {name[0]}, which nothing fills in; must be ${{env:{name[1]}}}")
        base = url.partition("?")[0].rstrip("/")
        if _PLACEHOLDER.search(base) is not None:
            yield raw.diagnostic(path, "has a placeholder, which nothing fills in; must be an address, or ${env:NAME}")
        if not _is_joined(raw, config):
            continue
        if (twice := _TWICE.search(base)) is not None:
            yield raw.diagnostic(path, f"ends in {twice[0]}, a version twice; must be the base URL, which has it once")
        if (theirs := _OLLAMA.search(base)) is not None:
            remedy = "must be the base URL of OpenAI's protocol, such as http://ollama:11434/v1"
            yield raw.diagnostic(path, f"ends in {theirs[0]}, a route of Ollama's own protocol; {remedy}")
        if (route := next(filter(base.endswith, _ROUTES), None)) is not None and theirs is None:
            yield raw.diagnostic(
                path, f"ends in {route}, a route, which is put after it; must be the base URL, which ends before that"
            )


def _is_joined(raw: RawConfig, config: DataPath) -> bool:
    """
    Whether routes are put after an upstream's URL; the other kinds of adapters ask the URL itself, or paths of theirs.
    """
    return config[-1] != "target" or raw.find((*config[:-1], "protocol", "kind")) == "completions"


def _header_paths(raw: RawConfig) -> Iterator[DataPath]:
    for path, _ in raw.models():
        yield from ((*path, "headers", key) for key in ("forward", "set", "expose"))
    yield from ((*path, "headers") for path in _upstream_paths(raw))


def _upstream_paths(raw: RawConfig) -> Iterator[DataPath]:
    for path, model in raw.models():
        yield from ((*path, "upstreams", index) for index, _ in items(model.get("upstreams")))
        yield (*path, "target")
