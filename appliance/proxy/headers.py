"""Which headers are forwarded to an upstream, and which are returned to the client."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cache

from appliance.core.http import FRAMING_HEADERS, HOP_BY_HOP_HEADERS

# Traces (https://www.w3.org/TR/trace-context/), and what tells how to read a body.
_FORWARDED = frozenset(
    {
        "accept",
        "anthropic-beta",
        "anthropic-version",
        "content-type",
        "openai-beta",
        "traceparent",
        "tracestate",
        "x-request-id",
    }
)

# What clients need: when to retry, remaining limits, how long to cache, the name of a file.
# Servers in front of us and browsers obey others, such as `x-accel-redirect`, `x-sendfile`, `refresh`,
# `clear-site-data`, `set-cookie`, `link` and `alt-svc`. No list of those is complete, so this is an allow-list.
_RETURNED = frozenset(
    {
        "cache-control",
        "content-disposition",
        "content-language",
        "deprecation",
        "retry-after",
        "retry-after-ms",
        "sunset",
        "x-should-retry",
    }
)
_RETURNED_PREFIXES = ("anthropic-", "openai-", "ratelimit", "x-ratelimit-")

# The server sets these itself, even if the config exposes them.
_OWN = frozenset({"content-encoding", "content-type", "date", "x-request-id"})

# RFC 9110, section 5.5, without what is obsolete in it.
_VALID_VALUE = re.compile(r"[\t\x20-\x7e]*")


def forward_request_headers(
    client: Mapping[str, str], *, forward: Collection[str] = (), drop: Collection[str] = ()
) -> dict[str, str]:
    """Return the client's headers, by lower-case name, that an upstream gets: the default ones, and `forward`.

    `Authorization` is among them only if `forward` has it; headers of the connection never are.
    """
    allowed = _forwarded(tuple(forward), tuple(drop)) - _connection_headers(client)
    return {name: client[name] for name in allowed if name in client}


def forward_response_headers(
    upstream: Mapping[str, str], *, expose: Collection[str] = (), drop: Collection[str] = ()
) -> dict[str, str]:
    """Return the upstream's headers, by lower-case name, that the client gets: the default ones, and `expose`.

    Values that are not a line of ASCII are left out.
    """
    allowed, excluded = _returned(tuple(expose), tuple(drop))
    excluded |= _connection_headers(upstream)
    returned = {
        name: value
        for name, value in upstream.items()
        if (name in allowed or name.startswith(_RETURNED_PREFIXES)) and name not in excluded
    }
    if "x-request-id" in upstream:
        # The response has an id of ours; the support of the upstream asks for theirs.
        returned["x-upstream-request-id"] = upstream["x-request-id"]
    return {name: value for name, value in returned.items() if _VALID_VALUE.fullmatch(value)}


@cache
def _forwarded(forward: tuple[str, ...], drop: tuple[str, ...]) -> frozenset[str]:
    return (_FORWARDED | _lower(forward)) - _lower(drop) - HOP_BY_HOP_HEADERS - FRAMING_HEADERS


@cache
def _returned(expose: tuple[str, ...], drop: tuple[str, ...]) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names that clients get, and those that they never get."""
    return _RETURNED | _lower(expose), HOP_BY_HOP_HEADERS | FRAMING_HEADERS | _OWN | _lower(drop)


def _lower(names: Collection[str]) -> frozenset[str]:
    return frozenset(name.lower() for name in names)


def _connection_headers(headers: Mapping[str, str]) -> frozenset[str]:
    """Return the headers that ``Connection`` lists."""
    value = headers.get("connection")
    return frozenset() if value is None else _lower([name.strip() for name in value.split(",")])
