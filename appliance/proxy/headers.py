"""Which headers travel to an upstream, and which come back."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from appliance.core.http import FRAMING_HEADERS, HOP_BY_HOP_HEADERS

# Traces go through (https://www.w3.org/TR/trace-context/), and what says how a body is to be read.
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

# What clients act on: when to come back, what is left of their limits, how long an answer keeps, what a file is called.
# Servers before us and browsers obey others, such as `x-accel-redirect`, `x-sendfile`, `refresh`, `clear-site-data`,
# `set-cookie`, `link` and `alt-svc`. Nobody knows all of those, so only what is named here passes.
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

# Ours to say, whoever asks for it.
_OURS = frozenset({"content-encoding", "content-type", "date", "x-request-id"})

# RFC 9110, section 5.5, without what is obsolete in it.
_SENDABLE = re.compile(r"[\t\x20-\x7e]*")


def forward_request_headers(
    client: Mapping[str, str], *, forward: Collection[str] = (), drop: Collection[str] = ()
) -> dict[str, str]:
    """Those of the client's headers, by lower-case name, that travel upstream: the ones for everyone, and `forward`.

    `Authorization` is not among them unless `forward` says so; what names one connection never is.
    """
    named = _nominated(client)
    wanted = (_FORWARDED | {name.lower() for name in forward}) - {name.lower() for name in drop}
    return {name: client[name] for name in wanted - HOP_BY_HOP_HEADERS - FRAMING_HEADERS - named if name in client}


def forward_response_headers(
    upstream: Mapping[str, str], *, expose: Collection[str] = (), drop: Collection[str] = ()
) -> dict[str, str]:
    """Those of an answer's headers, by lower-case name, that the client gets: the ones for everyone, and `expose`.

    A value that is no line of ASCII stays here.
    """
    exposed = {name.lower() for name in expose}
    unwanted = HOP_BY_HOP_HEADERS | FRAMING_HEADERS | _OURS | _nominated(upstream) | {name.lower() for name in drop}
    kept = {
        name: value
        for name, value in upstream.items()
        if (name in _RETURNED or name in exposed or name.startswith(_RETURNED_PREFIXES)) and name not in unwanted
    }
    if "x-request-id" in upstream:
        # The response has an id of ours; the other one is what the upstream's support asks for.
        kept["x-upstream-request-id"] = upstream["x-request-id"]
    return {name: value for name, value in kept.items() if _SENDABLE.fullmatch(value)}


def _nominated(headers: Mapping[str, str]) -> frozenset[str]:
    """Headers that ``Connection`` says are of this connection."""
    return frozenset(name.strip().lower() for name in headers.get("connection", "").split(","))
