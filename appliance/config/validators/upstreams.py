"""Validators of upstreams: the headers that are sent to them, and their addresses."""

from __future__ import annotations

import re
from collections.abc import Iterator

from appliance.config.raw_config import RawConfig, items
from appliance.config.source_location import DataPath, Diagnostic
from appliance.config.upstreams import HEADER_NAME
from appliance.core.http import FRAMING_HEADERS, HOP_BY_HOP_HEADERS, has_valid_address
from appliance.core.model import OPENAI_PATHS

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


def headers_can_be_forwarded(raw: RawConfig) -> Iterator[Diagnostic]:
    """Headers of one connection, or that follow from the body, are not forwarded; the others have valid names."""
    remedy = "which belongs to one connection or its body; must be left out"
    for path in _header_paths(raw):
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


def addresses_are_valid(raw: RawConfig) -> Iterator[Diagnostic]:
    """Upstreams have a host and a valid port."""
    for upstream in _upstream_paths(raw):
        path = (*upstream, "url")
        url = raw.find(path)
        if isinstance(url, str) and not has_valid_address(url):
            must = "must be a URL with a host and a port that there can be, such as http://llm:8000/v1"
            yield raw.diagnostic(path, f"is {raw.quote(path)}; {must}")


def addresses_are_bases(raw: RawConfig) -> Iterator[Diagnostic]:
    """URLs have no placeholders, and those of OpenAI servers have no route: routes are appended to them."""
    for upstream in _upstream_paths(raw):
        path = (*upstream, "url")
        url = raw.find(path)
        if not isinstance(url, str):
            continue
        base = url.partition("?")[0].rstrip("/")
        if (variable := _SHELL_VARIABLE.search(base)) is not None:
            yield raw.diagnostic(path, f"has {variable[0]}, which nothing fills in; must be ${{env:{variable[1]}}}")
        if _PLACEHOLDER.search(base) is not None:
            yield raw.diagnostic(path, "has a placeholder, which nothing fills in; must be an address, or ${env:NAME}")
        if _takes_routes(raw, upstream) and (message := _route_error(base)):
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


def _takes_routes(raw: RawConfig, upstream: DataPath) -> bool:
    """Whether OpenAI's routes are appended to an upstream's URL; other kinds of adapters have paths of their own."""
    return upstream[-1] != "target" or raw.find((*upstream[:-1], "protocol", "kind")) == "completions"


def _header_paths(raw: RawConfig) -> Iterator[DataPath]:
    for path, _ in raw.models():
        yield from ((*path, "headers", key) for key in ("forward", "set", "expose"))
    yield from ((*path, "headers") for path in _upstream_paths(raw))


def _upstream_paths(raw: RawConfig) -> Iterator[DataPath]:
    for path, model in raw.models():
        yield from ((*path, "upstreams", index) for index, _ in items(model.get("upstreams")))
        yield (*path, "target")
