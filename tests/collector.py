"""A collector of OpenTelemetry: it takes spans in and remembers them."""

from __future__ import annotations

import gzip
from dataclasses import dataclass

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from upstreams import Answer, Asked, Upstream

TRACES = "/v1/traces"


@dataclass(frozen=True, slots=True)
class Span:
    """One span as it came over the wire; times are nanoseconds since 1970."""

    name: str
    trace: str
    id: str
    parent: str
    start: int
    end: int
    attributes: dict[str, str | int]
    is_error: bool
    service: str


def listen(upstream: Upstream) -> None:
    """Have a scripted server answer as a collector does."""
    upstream.on(TRACES, Answer(200, media_type="application/x-protobuf"))


def spans(upstream: Upstream) -> list[Span]:
    """All that came so far."""
    return [span for asked in upstream.asked if asked.path == TRACES for span in _spans(asked)]


def _spans(asked: Asked) -> list[Span]:
    body = gzip.decompress(asked.body) if asked.header("content-encoding") == "gzip" else asked.body
    message = ExportTraceServiceRequest.FromString(body)
    return [
        Span(
            each.name,
            each.trace_id.hex(),
            each.span_id.hex(),
            each.parent_span_id.hex(),
            each.start_time_unix_nano,
            each.end_time_unix_nano,
            {pair.key: pair.value.string_value or pair.value.int_value for pair in each.attributes},
            each.status.code == 2,
            next(pair.value.string_value for pair in group.resource.attributes if pair.key == "service.name"),
        )
        for group in message.resource_spans
        for scope in group.scope_spans
        for each in scope.spans
    ]
