"""The section of traces."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr

from appliance.config.base import BaseConfig


class TracingConfig(BaseConfig):
    """Where spans of requests go, by OpenTelemetry's protocol over HTTP. A trace that a client began goes on
    (`traceparent`, W3C Trace Context), and goes along to upstreams and to the engine.

    vLLM has spans of its own: set `otlp_traces_endpoint` in a model's `engine.args`, and they join the trace.
    Its protocol and name are those of OpenTelemetry's own variables, such as `OTEL_SERVICE_NAME`.
    """

    endpoint: Annotated[str, Field(pattern=r"^https?://[^\s]+$")]
    """URL of the collector, such as `http://collector:4318`; without a path, `/v1/traces` is added."""

    headers: dict[str, SecretStr] = Field(default_factory=dict)
    """Headers of the requests to it, such as `Authorization`; their values are never shown."""

    sample: Annotated[float, Field(ge=0, le=1)] = 1
    """Share of the traces that begin here and are recorded, from 0 to 1; of others their beginner decides."""

    service_name: Annotated[str, Field(min_length=1)] = "appliance"
    """What the spans say they are of: `service.name`."""
