"""Which answers are worth keeping, and what must be the same for two questions to be the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from appliance.core.model import ModelRequest, Operation

# The same input has the same output, whatever is asked for beside it.
_FUNCTIONS = frozenset(
    {
        Operation.EMBEDDING,
        Operation.RERANK,
        Operation.SCORE,
        Operation.CLASSIFICATION,
        Operation.POOLING,
    }
)

_COMPLETIONS = frozenset({Operation.CHAT_COMPLETION, Operation.COMPLETION})

# These tell two requests apart, not two questions.
_OF_ONE_REQUEST = frozenset({"traceparent", "tracestate", "x-request-id"})


class _Sampling(msgspec.Struct):
    stream: bool | None = None
    temperature: float | None = None
    seed: int | None = None


def may_keep(call: ModelRequest, body: bytes) -> bool:
    """Whether the answer to a call is the same every time, and the client lets it be kept."""
    if "no-store" in directives(call.headers):
        return False
    return call.operation in _FUNCTIONS or (call.operation in _COMPLETIONS and _is_deterministic(body))


def directives(headers: Mapping[str, str]) -> frozenset[str]:
    """What ``Cache-Control`` says (RFC 9111, section 5.2), without values."""
    parts = headers.get("cache-control", "").lower().split(",")
    return frozenset(part.partition("=")[0].strip() for part in parts)


def key_of(call: ModelRequest, headers: Mapping[str, str], body: bytes, owner: str | None = None) -> bytes:
    """The hash of a question: everything that the upstream sees of it and could answer to, and whose it is."""
    seen = sorted((name, value) for name, value in headers.items() if name not in _OF_ONE_REQUEST)
    made = hashlib.blake2b(msgspec.msgpack.encode((call.operation, call.path, call.query, seen, owner)), digest_size=32)
    made.update(body)
    return made.digest()


def _is_deterministic(body: bytes) -> bool:
    try:
        asked = msgspec.json.decode(body, type=_Sampling)
    except (ValueError, RecursionError):
        return False
    return not asked.stream and (asked.temperature == 0 or asked.seed is not None)
