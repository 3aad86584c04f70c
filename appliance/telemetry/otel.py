"""Spans of requests, out of their contexts, and their export; the only module that imports OpenTelemetry's SDK.

OpenTelemetry's ASGI instrumentation is not used: it knows neither the child spans nor gRPC, and wraps `send`.
Source of the names of attributes: https://opentelemetry.io/docs/specs/semconv/, those of HTTP, RPC and generative AI.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from appliance.config.telemetry import TracingConfig
from appliance.core.distribution import version
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

_PROPAGATOR = TraceContextTextMapPropagator()


class SpanExporter:
    """Sends spans to one collector."""

    def __init__(self, config: TracingConfig) -> None:
        has_path = bool(urlsplit(config.endpoint).path.strip("/"))
        url = config.endpoint if has_path else config.endpoint.rstrip("/") + "/v1/traces"
        headers = {name.lower(): value.get_secret_value() for name, value in config.headers.items()}
        resource = Resource.create({SERVICE_NAME: config.service_name, SERVICE_VERSION: version()})
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(config.sample)), resource=resource, shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(url, headers=headers, timeout=_EXPORT_SECONDS)
        self._processor = BatchSpanProcessor(exporter, schedule_delay_millis=_DELAY_MS)
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("appliance", version())

    def start_span(self, request: RequestContext, headers: Mapping[str, str]) -> RequestSpan:
        """Start the span of a request; its context gets the headers that propagate the trace."""
        return RequestSpan(self._tracer, request, headers)

    def close(self, seconds: float) -> None:
        """Send what waits, for up to `seconds`; blocks."""
        self._processor.force_flush(int(seconds * 1000))
        self._provider.shutdown()


class RequestSpan:
    """The span of a running request."""

    def __init__(self, tracer: trace.Tracer, request: RequestContext, headers: Mapping[str, str]) -> None:
        self._tracer = tracer
        # When the monotonic clock was 0, in nanoseconds since 1970.
        self._epoch_ns = time.time_ns() - time.monotonic_ns()
        # An empty context: the current one of the process may belong to another library.
        parent = _PROPAGATOR.extract(dict(headers), context=Context())
        self._span = tracer.start_span(
            request.method or request.path,
            context=parent,
            kind=trace.SpanKind.SERVER,
            start_time=self._ns(request.began),
        )
        request.trace = trace.format_trace_id(self._span.get_span_context().trace_id)
        propagated: dict[str, str] = {}
        _PROPAGATOR.inject(propagated, context=trace.set_span_in_context(self._span, Context()))
        request.trace_headers = propagated

    def end(self, request: RequestContext) -> None:
        """End the span, and add its child spans."""
        span, ended = self._span, request.ended or request.began
        if span.is_recording():
            span.update_name(_name(request))
            span.set_attributes(_attributes(request))
            if request.outcome >= 500 or (request.outcome == 0 and request.error):
                span.set_status(trace.StatusCode.ERROR, request.error or "")
            elif request.outcome == CLIENT_CLOSED_REQUEST:
                span.add_event("client left", timestamp=self._ns(ended))
            self._add_children(request)
        span.end(self._ns(ended))

    def _add_children(self, request: RequestContext) -> None:
        """Add the spans of admission and engine, as far as the request got."""
        admitted, ended = request.admitted, request.ended
        if request.operation is None or ended is None:
            return
        admission = self._add("admission", self._span, request.began, admitted or ended)
        self._add_queue(admission, request, request.began, admitted)
        if admitted is not None:
            engine = self._add("engine", self._span, admitted, ended)
            self._add_queue(engine, request, admitted, request.scheduled)
            if request.first is not None:
                self._add("first token", engine, request.scheduled or admitted, request.first)

    def _add_queue(self, parent: trace.Span, request: RequestContext, after: float, until: float | None) -> None:
        """Add the span of the wait that began after one time and ended at another, if there was one."""
        if request.queued is not None and until is not None and after <= request.queued <= until:
            self._add("queue", parent, request.queued, until)

    def _add(self, name: str, parent: trace.Span, began: float, ended: float) -> trace.Span:
        context = trace.set_span_in_context(parent, Context())
        span = self._tracer.start_span(name, context=context, start_time=self._ns(began))
        span.end(self._ns(ended))
        return span

    def _ns(self, moment: float) -> int:
        """Return a time of the monotonic clock in nanoseconds since 1970."""
        return self._epoch_ns + int(moment * 1e9)


def _name(request: RequestContext) -> str:
    """Return the name of the request's span: its route, so that there are few names."""
    if request.method:
        return f"{request.method} {request.route}" if request.route else request.method
    return (request.route or "").removeprefix("/")


def _attributes(request: RequestContext) -> dict[str, Value]:
    is_http = bool(request.method)
    attributes: Mapping[str, Value | None] = {
        "http.request.method": request.method or None,
        "http.route": request.route if is_http else None,
        "url.path": request.path if is_http else None,
        "http.response.status_code": request.status if is_http else None,
        "rpc.system": None if is_http else "grpc",
        "rpc.method": None if is_http else request.path,
        "rpc.grpc.status": request.grpc_status,
        "error.type": request.error,
        "gen_ai.operation.name": _OPERATION_NAMES.get(request.operation or "", request.operation),
        "gen_ai.request.model": request.model,
        "gen_ai.usage.input_tokens": request.prompt_tokens,
        "gen_ai.usage.output_tokens": request.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": request.cached_tokens,
        "appliance.request_id": request.id,
        "appliance.key": request.key,
        "appliance.refused": request.refused,
    }
    return {name: value for name, value in attributes.items() if value is not None}
