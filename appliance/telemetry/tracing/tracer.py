"""The way of a request's trace: taken in with its headers, passed on with them, told at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.config.telemetry import TracingConfig
from appliance.core.request_context import RequestContext

if TYPE_CHECKING:
    from appliance.telemetry.tracing.exporter import Open, SpanExporter

# How long what waits may take to leave once the server stops.
_FLUSH_SECONDS = 3.0

Headers = Callable[[], Mapping[str, str]]
"""A request's headers by lower-case name, read only where somebody traces."""


@dataclass(frozen=True, slots=True)
class RequestSpan:
    """A request that is traced, and by whom."""

    exporting: SpanExporter
    open: Open


class Tracer:
    """Traces requests as a section says; None traces none, and costs nothing."""

    def __init__(self, config: TracingConfig | None) -> None:
        self._config: TracingConfig | None = None
        self._exporting: SpanExporter | None = None
        self._past: list[SpanExporter] = []
        self.apply(config)

    def apply(self, config: TracingConfig | None) -> None:
        """Go by this section from now on; requests under way are told where they began.

        Raises:
            MissingExtraError: OpenTelemetry is not installed.
        """
        if config == self._config:
            return
        if self._exporting is not None:
            self._past.append(self._exporting)
        self._config, self._exporting = config, None
        if config is not None:
            from appliance.telemetry.tracing.exporter import SpanExporter

            self._exporting = SpanExporter(config)

    def begin(self, record: RequestContext, headers: Headers) -> RequestSpan | None:
        """Trace a request that begins now; None where nobody traces."""
        exporting = self._exporting
        return None if exporting is None else RequestSpan(exporting, exporting.begin(record, headers()))

    def end(self, record: RequestContext, traced: RequestSpan) -> None:
        """Tell of a request that has ended, unless it is a probe."""
        if not record.is_probe:
            traced.exporting.end(record, traced.open)

    async def stop(self) -> None:
        """Send what waits, as far as there is time."""
        every = [*self._past, *([self._exporting] if self._exporting else [])]
        await asyncio.gather(*(asyncio.to_thread(each.close, _FLUSH_SECONDS) for each in every))
