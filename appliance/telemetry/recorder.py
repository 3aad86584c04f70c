"""All telemetry of a request, in one place for every listener."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.config.telemetry import AccessLogConfig, PayloadLogConfig, TracingConfig
from appliance.core.request_context import RequestContext
from appliance.telemetry import metrics
from appliance.telemetry.access_log import AccessLog
from appliance.telemetry.payload_log import BodyCapture, PayloadLog
from appliance.telemetry.tracing import Headers, RequestSpan, Tracer


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """The telemetry of a config; `payloads` and `tracing` are None if they are off, `digest` is that of the config."""

    access: AccessLogConfig = field(default_factory=AccessLogConfig)
    payloads: PayloadLogConfig | None = None
    tracing: TracingConfig | None = None
    digest: str = "none"


class RequestRecorder:
    """Counts, logs and traces the requests of this process.

    `source` and `attributes` name this service in the payload log.
    """

    def __init__(
        self, settings: TelemetrySettings, source: str = "appliance", attributes: Mapping[str, str] = {}
    ) -> None:
        self._access_log = AccessLog(settings.access)
        self._payload_log = PayloadLog(settings.payloads, source, attributes)
        self._tracer = Tracer(settings.tracing)
        metrics.show_build(settings.digest)

    def apply(self, settings: TelemetrySettings) -> None:
        """Use these settings from now on.

        Raises:
            MissingExtraError: tracing is on, and OpenTelemetry is not installed.
        """
        self._tracer.apply(settings.tracing)
        self._access_log.config = settings.access
        self._payload_log.config = settings.payloads
        metrics.show_build(settings.digest)

    def capture(self) -> BodyCapture | None:
        """Return where to copy the bodies of a new request; None if they are not logged."""
        return self._payload_log.capture()

    def start_span(self, context: RequestContext, headers: Headers) -> RequestSpan | None:
        """Start the span of a new request; None if tracing is off."""
        return self._tracer.start_span(context, headers)

    def record(
        self, context: RequestContext, capture: BodyCapture | None = None, span: RequestSpan | None = None
    ) -> None:
        """Count, log and trace a request that has ended."""
        metrics.count(context)
        self._access_log.log(context)
        if span is not None:
            self._tracer.end_span(context, span)
        if capture is not None:
            self._payload_log.add(context, capture)

    async def stop(self) -> None:
        """Send what waits, within seconds."""
        await asyncio.gather(self._payload_log.stop(), self._tracer.stop())
