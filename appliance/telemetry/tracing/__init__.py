"""
Traces: a span for each request, and what it waited for below it, for OpenTelemetry; off unless the config asks for it.
"""

from appliance.telemetry.tracing.tracer import Headers, RequestSpan, Tracer

__all__ = ["Headers", "RequestSpan", "Tracer"]
