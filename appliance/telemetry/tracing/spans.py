"""The spans of a request that has ended, out of what its record says.

Source of the names of attributes: https://opentelemetry.io/docs/specs/semconv/, those of HTTP, RPC and generative AI.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from appliance.core.model import Operation
from appliance.core.request_context import RequestContext

Value = str | int

# https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/; for the others it has no word.
_WORDS: Mapping[str, str] = {
    Operation.CHAT_COMPLETION: "chat",
    Operation.RESPONSE: "chat",
    Operation.MESSAGE: "chat",
    Operation.COMPLETION: "text_completion",
    Operation.EMBEDDING: "embeddings",
}


@dataclass(frozen=True, slots=True)
class SpanPart:
    """One span below the request's, between two moments of the monotonic clock, with those below it."""

    name: str
    began: float
    ended: float
    attributes: Mapping[str, Value] = field(default_factory=dict)
    parts: tuple[SpanPart, ...] = ()


def name(record: RequestContext) -> str:
    """The name of the request's span: its route, which is one of a few."""
    if record.method:
        return f"{record.method} {record.route}" if record.route else record.method
    return (record.route or "").removeprefix("/")


def attributes(record: RequestContext) -> dict[str, Value]:
    """What the request's span says."""
    facts: Mapping[str, Value | None] = {
        "http.request.method": record.method or None,
        "http.route": record.route if record.method else None,
        "url.path": record.path if record.method else None,
        "http.response.status_code": record.status if record.method else None,
        "rpc.system": None if record.method else "grpc",
        "rpc.method": None if record.method else record.path,
        "rpc.grpc.status": record.grpc_status,
        "error.type": record.error,
        "gen_ai.operation.name": _WORDS.get(record.operation or "", record.operation),
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "appliance.request_id": record.id,
        "appliance.key": record.key,
        "appliance.refused": record.refused,
    }
    return {name: value for name, value in facts.items() if value is not None}


def parts(record: RequestContext) -> Iterator[SpanPart]:
    """Admission and engine, as far as the request got."""
    if record.operation is None or record.ended is None:
        return
    admitted = record.admitted
    yield SpanPart("admission", record.began, admitted or record.ended, parts=_waiting(record, record.began, admitted))
    if admitted is None:
        return
    below = list(_waiting(record, admitted, record.scheduled))
    if record.first is not None:
        below.append(SpanPart("first token", record.scheduled or admitted, record.first))
    yield SpanPart("engine", admitted, record.ended, parts=tuple(below))


def _waiting(record: RequestContext, after: float, until: float | None) -> tuple[SpanPart, ...]:
    """The wait that began after one moment and ended at another, if there was one."""
    queued = record.queued
    if queued is None or until is None or not after <= queued <= until:
        return ()
    return (SpanPart("queue", queued, until),)
