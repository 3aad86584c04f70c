"""OpenTelemetry's part of it: the one module that imports its SDK."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from urllib.parse import urlsplit

from appliance.config.telemetry import TracingConfig
from appliance.core.errors import MissingExtraError
from appliance.core.request_context import CLIENT_CLOSED_REQUEST, RequestContext
from appliance.telemetry.tracing import spans

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

# Spans wait this long for company.
_DELAY_MS = 1000.0


@dataclass(frozen=True, slots=True)
class Open:
    """The span of a request under way; `epoch_ns` is when the monotonic clock was 0, in nanoseconds since 1970."""

    span: trace.Span
    epoch_ns: int

    def at(self, moment: float) -> int:
        """A moment of the monotonic clock as OpenTelemetry has it."""
        return self.epoch_ns + int(moment * 1e9)


class SpanExporter:
    """Spans on their way to one collector."""

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

    def begin(self, record: RequestContext, headers: Mapping[str, str]) -> Open:
        """The span of a request that begins now; the record gets what carries its trace on."""
        epoch_ns = time.time_ns() - time.monotonic_ns()
        # An empty context of its own: the process's current one is somebody else's.
        parent = self._propagator.extract(dict(headers), context=Context())
        span = self._tracer.start_span(
            record.method or record.path,
            context=parent,
            kind=trace.SpanKind.SERVER,
            start_time=epoch_ns + int(record.began * 1e9),
        )
        record.trace = trace.format_trace_id(span.get_span_context().trace_id)
        passed_on: dict[str, str] = {}
        self._propagator.inject(passed_on, context=trace.set_span_in_context(span, Context()))
        record.trace_headers = passed_on
        return Open(span, epoch_ns)

    def end(self, record: RequestContext, begun: Open) -> None:
        """End the span of a request, and tell what is below it."""
        span = begun.span
        if span.is_recording():
            span.update_name(spans.name(record))
            span.set_attributes(spans.attributes(record))
            if record.outcome >= 500 or (record.outcome == 0 and record.error):
                span.set_status(trace.StatusCode.ERROR, record.error or "")
            elif record.outcome == CLIENT_CLOSED_REQUEST:
                span.add_event("client left", timestamp=begun.at(record.ended or record.began))
            for part in spans.parts(record):
                self._tell(part, span, begun)
        span.end(begun.at(record.ended or record.began))

    def close(self, seconds: float) -> None:
        """Send what waits, up to `seconds`; blocks."""
        self._processor.force_flush(int(seconds * 1000))
        self._provider.shutdown()

    def _tell(self, part: spans.SpanPart, above: trace.Span, begun: Open) -> None:
        context = trace.set_span_in_context(above, Context())
        span = self._tracer.start_span(
            part.name, context=context, start_time=begun.at(part.began), attributes=dict(part.attributes)
        )
        for below in part.parts:
            self._tell(below, span, begun)
        span.end(begun.at(part.ended))


def _url(endpoint: str) -> str:
    return endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + "/v1/traces"
