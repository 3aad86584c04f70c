"""All that is told of a request, in one place for every listener."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.config.telemetry import AccessLogConfig, PayloadLogConfig, TracingConfig
from appliance.core.request_context import RequestContext
from appliance.telemetry import build_info, request_metrics
from appliance.telemetry.access_log import AccessLog
from appliance.telemetry.payloads import BodyCapture, PayloadLog
from appliance.telemetry.tracing import Headers, RequestSpan, Tracer


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """What is to be told; `payloads` and `tracing` are None where nobody wants them, `digest` is the config's."""

    access: AccessLogConfig = field(default_factory=AccessLogConfig)
    payloads: PayloadLogConfig | None = None
    tracing: TracingConfig | None = None
    digest: str = "none"


class RequestRecorder:
    """Counts, logs and traces the requests of this process.

    `source` and `facts` say in the payload log whose they are.
    """

    def __init__(self, settings: TelemetrySettings, source: str = "appliance", facts: Mapping[str, str] = {}) -> None:
        self._access = AccessLog(settings.access)
        self._payloads = PayloadLog(settings.payloads, source, facts)
        self._traces = Tracer(settings.tracing)
        build_info.show(settings.digest)

    def apply(self, settings: TelemetrySettings) -> None:
        """Go by these settings from now on.

        Raises:
            MissingExtraError: traces are wanted, and OpenTelemetry is not installed.
        """
        self._access.apply(settings.access)
        self._payloads.apply(settings.payloads)
        self._traces.apply(settings.tracing)
        build_info.show(settings.digest)

    def copy(self) -> BodyCapture | None:
        """Where to copy the bodies of a request that begins now; None where nobody wants them."""
        return self._payloads.copy()

    def trace(self, record: RequestContext, headers: Headers) -> RequestSpan | None:
        """Trace a request that begins now; None where nobody traces."""
        return self._traces.begin(record, headers)

    def tell(self, record: RequestContext, copy: BodyCapture | None = None, traced: RequestSpan | None = None) -> None:
        """Take in a request that has ended."""
        request_metrics.count(record)
        self._access.tell(record)
        if traced is not None:
            self._traces.end(record, traced)
        if copy is not None:
            self._payloads.take(record, copy)

    async def stop(self) -> None:
        """Let go of what is still to be told, within seconds."""
        await asyncio.gather(self._payloads.stop(), self._traces.stop())
