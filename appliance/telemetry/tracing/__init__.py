"""
Traces: a span for each request, and what it waited for below it, for OpenTelemetry; off unless the config asks for it.
"""

from appliance.config.tracing import TracingSection
from appliance.telemetry.tracing.tracer import Headers, Traced, Traces

__all__ = ["Headers", "Traced", "Traces", "TracingSection"]
