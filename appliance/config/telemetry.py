"""Config of logs, the payload log and traces: the keys `logging` and `tracing`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SecretStr

from appliance.config.base import BaseConfig, text_like


class AccessLogConfig(BaseConfig):
    """Sampling of the log event `request.ended`; probes have none."""

    sample: Annotated[float, Field(ge=0, le=1)] = 1
    """Fraction of requests that are logged, from 0 to 1; requests that ended with an error are always logged."""


class PayloadLogConfig(BaseConfig):
    """Log of the bodies of requests and responses, as CloudEvents of the types of KServe's logger. They contain the
    texts of users: restrict who can read them. Request headers, and so API keys, are never included. gRPC messages are
    included in wire format, in base64.

    Logging does not delay requests: events that the sink does not accept in time are dropped, and counted in
    `appliance_payloads_total`.
    """

    sink: Annotated[
        str,
        text_like(
            r"^(https?://[^\s]+|/[^\s]*[^/\s])$", "http:// or https:// and a host, or the absolute path of a file"
        ),
    ]
    """A URL to post each event to, or the absolute path of a file to append events to as lines of JSON."""

    headers: dict[str, SecretStr] = Field(default_factory=dict)
    """Headers of the requests to the URL, such as `Authorization`; their values are never shown."""

    mode: Literal["all", "request", "response"] = "all"
    """Whether requests, responses or both are logged."""

    sample: Annotated[float, Field(ge=0, le=1)] = 1
    """Share of the requests that are logged, from 0 to 1."""

    max_bytes: Annotated[int, Field(ge=0)] = 256 * 1024
    """Limit of a body in an event, in bytes; a longer one is cut, and its event has `truncated`."""

    max_queued_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024 * 1024
    """Memory limit of bodies that wait for the sink, in bytes per worker; further events are dropped."""


class LoggingConfig(BaseConfig):
    """Format and content of the log."""

    format: Literal["auto", "json", "console"] = "auto"
    """`json` is one object per line, `console` is for people; `auto` is console on a terminal and json elsewhere."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest severity that is logged."""

    access: AccessLogConfig = AccessLogConfig()
    """Sampling of the log event of each request."""

    payloads: PayloadLogConfig | None = None
    """Log of the bodies of requests and responses; unset logs none."""


class TracingConfig(BaseConfig):
    """Export of request spans with OTLP over HTTP. A client's trace is continued (`traceparent`, W3C Trace Context),
    and is propagated to upstreams and to the engine.

    vLLM has its own spans: set `otlp_traces_endpoint` in a model's `engine.args`, and they join the trace. Their
    protocol and service name are set by OpenTelemetry's variables, such as `OTEL_SERVICE_NAME`.
    """

    endpoint: Annotated[
        str, text_like(r"^https?://[^\s]+$", "http:// or https://, a host, and an optional port and path")
    ]
    """URL of the collector, such as `http://collector:4318`; without a path, `/v1/traces` is added."""

    headers: dict[str, SecretStr] = Field(default_factory=dict)
    """Headers of the requests to it, such as `Authorization`; their values are never shown."""

    sample: Annotated[float, Field(ge=0, le=1)] = 1
    """Fraction of new traces that are recorded, from 0 to 1; for a client's trace the client decides."""

    service_name: Annotated[str, Field(min_length=1)] = "appliance"
    """`service.name` of the spans."""
