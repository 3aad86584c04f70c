"""Tracing of requests, on or off as the config says; `otel` does it, and is imported only if it is on.

OpenTelemetry's ASGI instrumentation is not used: it knows neither the child spans nor gRPC, and wraps `send`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.config.telemetry import TracingConfig
from appliance.core.request_context import RequestContext

if TYPE_CHECKING:
    from appliance.telemetry.otel import OpenSpan, SpanExporter

# How long sending the remaining spans may take when the server stops.
_FLUSH_SECONDS = 3.0

Headers = Callable[[], Mapping[str, str]]
"""
Returns the headers of a request by lower-case name; called only if tracing is on.
"""


@dataclass(frozen=True, slots=True)
class RequestSpan:
    """The span of a running request, and its exporter."""

    exporter: SpanExporter
    open: OpenSpan


class Tracer:
    """Traces requests as the config says; None is off, and costs nothing."""

    def __init__(self, config: TracingConfig | None) -> None:
        self._config: TracingConfig | None = None
        self._exporter: SpanExporter | None = None
        self._earlier: list[SpanExporter] = []
        self.apply(config)

    def apply(self, config: TracingConfig | None) -> None:
        """Use this config from now on; running requests are exported where they started.

        Raises:
            MissingExtraError: OpenTelemetry is not installed.
        """
        if config == self._config:
            return
        if self._exporter is not None:
            self._earlier.append(self._exporter)
        self._config, self._exporter = config, None
        if config is not None:
            from appliance.telemetry.otel import SpanExporter

            self._exporter = SpanExporter(config)

    def start_span(self, context: RequestContext, headers: Headers) -> RequestSpan | None:
        """Start the span of a new request; None if tracing is off."""
        exporter = self._exporter
        return None if exporter is None else RequestSpan(exporter, exporter.start_span(context, headers()))

    def end_span(self, context: RequestContext, span: RequestSpan) -> None:
        """End the span of a request, unless it is a probe."""
        if not context.is_probe:
            span.exporter.end_span(context, span.open)

    async def stop(self) -> None:
        """Send what waits, as far as there is time."""
        exporters = [*self._earlier, *([self._exporter] if self._exporter else [])]
        await asyncio.gather(*(asyncio.to_thread(each.close, _FLUSH_SECONDS) for each in exporters))
