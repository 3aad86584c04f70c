"""All telemetry of a request, in one place for every listener: metrics, access log, payload log and trace."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import structlog

from appliance.config import Config
from appliance.config.loader import digest
from appliance.core.request_context import RequestContext
from appliance.telemetry import metrics
from appliance.telemetry.payload_log import BodyCapture, PayloadLog

if TYPE_CHECKING:
    from appliance.telemetry.otel import RequestSpan, SpanExporter

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# How long sending the remaining spans may take when the server stops.
_FLUSH_SECONDS = 3.0

# A tenth of a millisecond: finer than any wait that matters, and short.
_DIGITS = 4


class RequestRecorder:
    """Counts, logs and traces the requests of this process as the config says; any thread may call it for probes."""

    def __init__(self, config: Config) -> None:
        """
        Raises:
            MissingExtraError: tracing is on, and OpenTelemetry is not installed.
        """
        self._payload_log = PayloadLog(config.metadata)
        self._exporter: SpanExporter | None = None
        if config.tracing is not None:
            from appliance.telemetry.otel import SpanExporter

            self._exporter = SpanExporter(config.tracing)
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Use a config that differs in hot keys only from now on."""
        self._sample = config.logging.access.sample
        self._payload_log.config = config.logging.payloads
        metrics.show_build(digest(config))

    def capture(self) -> BodyCapture | None:
        """Return where to copy the bodies of a new request; None if they are not logged."""
        return self._payload_log.capture()

    def start_span(self, context: RequestContext, headers: Callable[[], Mapping[str, str]]) -> RequestSpan | None:
        """Start the span of a new request; None if tracing is off.

        `headers` returns the request's headers by lower-case name; it is called only if tracing is on.
        """
        return None if self._exporter is None else self._exporter.start_span(context, headers())

    def record(
        self, context: RequestContext, capture: BodyCapture | None = None, span: RequestSpan | None = None
    ) -> None:
        """Count, log and trace a request that has ended; probes are neither logged nor traced."""
        metrics.count(context)
        if not context.is_probe:
            has_failed = context.outcome >= 400 or context.outcome == 0
            if has_failed or random.random() < self._sample:  # noqa: S311 - not a secret
                log.info("request.ended", **_log_fields(context))
            if span is not None:
                span.end(context)
        if capture is not None:
            self._payload_log.add(context, capture)

    async def stop(self) -> None:
        """Send what waits, within seconds."""
        exporter = self._exporter
        closing = [] if exporter is None else [asyncio.to_thread(exporter.close, _FLUSH_SECONDS)]
        await asyncio.gather(self._payload_log.stop(), *closing)


def _log_fields(context: RequestContext) -> dict[str, object]:
    """Return the fields of the event; unknown values are omitted."""

    def since_start(moment: float | None) -> float | None:
        return None if moment is None else round(moment - context.began, _DIGITS)

    fields: dict[str, object] = {
        "method": context.method or None,
        "path": context.path,
        "status": context.status or 0,
        "grpc_status": context.grpc_status,
        "late_status": context.late_status,
        "error": context.error,
        "refused": context.refused,
        "protocol": context.protocol,
        "model": context.model,
        "operation": context.operation,
        "key": context.key,
        "batch": context.batch,
        "response": context.response,
        "streamed": context.is_streamed or None,
        "seconds": since_start(context.ended),
        "admitted_seconds": since_start(context.admitted),
        "first_seconds": since_start(context.first),
        "sequences": context.sequences if context.sequences > 1 else None,
        "prompt_tokens": context.prompt_tokens,
        "cached_tokens": context.cached_tokens,
        "output_tokens": context.output_tokens,
    }
    return {name: value for name, value in fields.items() if value is not None}
