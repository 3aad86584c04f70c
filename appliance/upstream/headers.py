"""
Which headers travel to an upstream, and which come back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

# RFC 9110, section 7.6.1, and what older software means by it; each belongs to one connection.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

# What the transport works out by itself.
FRAMING = frozenset({"accept-encoding", "content-length", "expect", "host"})

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

# Ours to say: who we are, when, how long the answer is; cookies and challenges are the upstream's with us.
_NOT_RETURNED = HOP_BY_HOP | {
    "alt-svc",
    "content-encoding",
    "content-length",
    "content-security-policy",
    "content-type",
    "date",
    "location",
    "server",
    "set-cookie",
    "strict-transport-security",
    "www-authenticate",
    "x-request-id",
}


def upward(client: Mapping[str, str], *, forward: Collection[str] = (), drop: Collection[str] = ()) -> dict[str, str]:
    """
    Those of the client's headers, by lower-case name, that travel upstream: the ones for everyone, and `forward`.

    `Authorization` is not among them unless `forward` says so; what names one connection never is.
    """
    named = _nominated(client)
    wanted = (_FORWARDED | {name.lower() for name in forward}) - {name.lower() for name in drop}
    return {name: client[name] for name in wanted - HOP_BY_HOP - FRAMING - named if name in client}


def downward(upstream: Mapping[str, str], *, drop: Collection[str] = ()) -> dict[str, str]:
    """
    Those of an answer's headers, by lower-case name, that the client gets.
    """
    unwanted = _NOT_RETURNED | _nominated(upstream) | {name.lower() for name in drop}
    # Which pages may read an answer is for whoever faces them to say.
    kept = {
        name: value
        for name, value in upstream.items()
        if name not in unwanted and not name.startswith("access-control-")
    }
    if "x-request-id" in upstream:
        # The response has an id of ours; the other one is what the upstream's support asks for.
        kept["x-upstream-request-id"] = upstream["x-request-id"]
    return kept


def _nominated(headers: Mapping[str, str]) -> frozenset[str]:
    """
    Headers that ``Connection`` says are of this connection.
    """
    return frozenset(name.strip().lower() for name in headers.get("connection", "").split(","))
