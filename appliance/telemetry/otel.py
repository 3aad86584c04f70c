"""Spans of requests, out of their contexts, and their export; the only module that imports OpenTelemetry's SDK.

Source of the names of attributes: https://opentelemetry.io/docs/specs/semconv/, those of HTTP, RPC and generative AI.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from urllib.parse import urlsplit

from appliance.config.telemetry import TracingConfig
from appliance.core.errors import MissingExtraError
from appliance.core.model import Operation
from appliance.core.request_context import CLIENT_CLOSED_REQUEST, RequestContext

try:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise MissingExtraError("opentelemetry-sdk", "tracing", "tracing") from error

_EXPORT_SECONDS = 5.0

# Spans are sent in batches, this often.
_DELAY_MS = 1000.0


Value = str | int

# https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/; it has no names for the other operations.
_OPERATION_NAMES: Mapping[str, str] = {
    Operation.CHAT_COMPLETION: "chat",
    Operation.RESPONSE: "chat",
    Operation.MESSAGE: "chat",
    Operation.COMPLETION: "text_completion",
    Operation.EMBEDDING: "embeddings",
}


@dataclass(frozen=True, slots=True)
class SpanPart:
    """A span below that of the request, between two times of the monotonic clock, with its child spans."""

    name: str
    began: float
    ended: float
    attributes: Mapping[str, Value] = field(default_factory=dict)
    parts: tuple[SpanPart, ...] = ()


def span_name(context: RequestContext) -> str:
    """Return the name of the request's span: its route, so that there are few names."""
    if context.method:
        return f"{context.method} {context.route}" if context.route else context.method
    return (context.route or "").removeprefix("/")


def span_attributes(context: RequestContext) -> dict[str, Value]:
    """Return the attributes of the request's span."""
    attributes: Mapping[str, Value | None] = {
        "http.request.method": context.method or None,
        "http.route": context.route if context.method else None,
        "url.path": context.path if context.method else None,
        "http.response.status_code": context.status if context.method else None,
        "rpc.system": None if context.method else "grpc",
        "rpc.method": None if context.method else context.path,
        "rpc.grpc.status": context.grpc_status,
        "error.type": context.error,
        "gen_ai.operation.name": _OPERATION_NAMES.get(context.operation or "", context.operation),
        "gen_ai.request.model": context.model,
        "gen_ai.usage.input_tokens": context.prompt_tokens,
        "gen_ai.usage.output_tokens": context.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": context.cached_tokens,
        "appliance.request_id": context.id,
        "appliance.key": context.key,
        "appliance.refused": context.refused,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def span_parts(context: RequestContext) -> Iterator[SpanPart]:
    """Yield the spans of admission and engine, as far as the request got."""
    if context.operation is None or context.ended is None:
        return
    admitted = context.admitted
    yield SpanPart(
        "admission", context.began, admitted or context.ended, parts=_queue_span(context, context.began, admitted)
    )
    if admitted is None:
        return
    below = list(_queue_span(context, admitted, context.scheduled))
    if context.first is not None:
        below.append(SpanPart("first token", context.scheduled or admitted, context.first))
    yield SpanPart("engine", admitted, context.ended, parts=tuple(below))


def _queue_span(context: RequestContext, after: float, until: float | None) -> tuple[SpanPart, ...]:
    """Return the span of the wait that began after one time and ended at another, if there was one."""
    queued = context.queued
    if queued is None or until is None or not after <= queued <= until:
        return ()
    return (SpanPart("queue", queued, until),)


@dataclass(frozen=True, slots=True)
class OpenSpan:
    """The span of a running request; `epoch_ns` is when the monotonic clock was 0, in nanoseconds since 1970."""

    span: trace.Span
    epoch_ns: int

    def at(self, moment: float) -> int:
        """Return a time of the monotonic clock as OpenTelemetry has it."""
        return self.epoch_ns + int(moment * 1e9)


class SpanExporter:
    """Sends spans to one collector."""

    def __init__(self, config: TracingConfig) -> None:
        headers = {name.lower(): value.get_secret_value() for name, value in config.headers.items()}
        exporter = OTLPSpanExporter(_url(config.endpoint), headers=headers, timeout=_EXPORT_SECONDS)
        resource = Resource.create({SERVICE_NAME: config.service_name, SERVICE_VERSION: version("appliance")})
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(config.sample)), resource=resource, shutdown_on_exit=False
        )
        self._processor = BatchSpanProcessor(exporter, schedule_delay_millis=_DELAY_MS)
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("appliance", version("appliance"))
        self._propagator = TraceContextTextMapPropagator()

    def start_span(self, request: RequestContext, headers: Mapping[str, str]) -> OpenSpan:
        """Start the span of a request; its context gets the headers that propagate the trace."""
        epoch_ns = time.time_ns() - time.monotonic_ns()
        # An empty context: the current one of the process may belong to another library.
        parent = self._propagator.extract(dict(headers), context=Context())
        span = self._tracer.start_span(
            request.method or request.path,
            context=parent,
            kind=trace.SpanKind.SERVER,
            start_time=epoch_ns + int(request.began * 1e9),
        )
        request.trace = trace.format_trace_id(span.get_span_context().trace_id)
        propagated: dict[str, str] = {}
        self._propagator.inject(propagated, context=trace.set_span_in_context(span, Context()))
        request.trace_headers = propagated
        return OpenSpan(span, epoch_ns)

    def end_span(self, request: RequestContext, open_span: OpenSpan) -> None:
        """End the span of a request, and add its child spans."""
        span = open_span.span
        if span.is_recording():
            span.update_name(span_name(request))
            span.set_attributes(span_attributes(request))
            if request.outcome >= 500 or (request.outcome == 0 and request.error):
                span.set_status(trace.StatusCode.ERROR, request.error or "")
            elif request.outcome == CLIENT_CLOSED_REQUEST:
                span.add_event("client left", timestamp=open_span.at(request.ended or request.began))
            for part in span_parts(request):
                self._add(part, span, open_span)
        span.end(open_span.at(request.ended or request.began))

    def close(self, seconds: float) -> None:
        """Send what waits, for up to `seconds`; blocks."""
        self._processor.force_flush(int(seconds * 1000))
        self._provider.shutdown()

    def _add(self, part: SpanPart, parent_span: trace.Span, open_span: OpenSpan) -> None:
        context = trace.set_span_in_context(parent_span, Context())
        span = self._tracer.start_span(
            part.name, context=context, start_time=open_span.at(part.began), attributes=dict(part.attributes)
        )
        for child in part.parts:
            self._add(child, span, open_span)
        span.end(open_span.at(part.ended))


def _url(endpoint: str) -> str:
    return endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + "/v1/traces"
