"""Config of logs, the payload log and traces: the keys `logging` and `tracing`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SecretStr

from appliance.config.base import BaseConfig


class AccessLogConfig(BaseConfig):
    """Which requests have an event `request.ended` in the log; those of probes have none."""

    sample: Annotated[float, Field(ge=0, le=1)] = 1
    """Share of the requests that have one, from 0 to 1; those that ended in an error always have it."""


class PayloadLogConfig(BaseConfig):
    """Where the bodies of requests and answers go, as CloudEvents of the types that KServe's logger has. They hold what
    people said: mind who reads them. No header of a request is ever among them, and so no key. Messages of gRPC are
    there as they are on the wire, in base64.

    No request waits for it: what the sink does not take in time is dropped, and counted in `appliance_payloads_total`.
    """

    sink: Annotated[str, Field(pattern=r"^(https?://[^\s]+|/[^\s]*[^/\s])$")]
    """
    A URL that events are posted to, each as a request, or the absolute path of a file that gets them as lines of JSON.
    """

    headers: dict[str, SecretStr] = Field(default_factory=dict)
    """Headers of the requests to the URL, such as `Authorization`; their values are never shown."""

    mode: Literal["all", "request", "response"] = "all"
    """Whether requests, answers or both are logged."""

    sample: Annotated[float, Field(ge=0, le=1)] = 1
    """Share of the requests that are logged, from 0 to 1."""

    max_bytes: Annotated[int, Field(ge=0)] = 256 * 1024
    """Longest body that is logged whole, in bytes; of a longer one the beginning is, and the event says `truncated`."""

    max_queued_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024 * 1024
    """Most memory for bodies that wait for the sink, in bytes and in each worker; what comes then is dropped."""


class LoggingConfig(BaseConfig):
    """What the log looks like."""

    format: Literal["auto", "json", "console"] = "auto"
    """`json` is one object a line, `console` is for people; `auto` is console on a terminal and json elsewhere."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe event that is written."""

    access: AccessLogConfig = AccessLogConfig()
    """Which requests have an event of their own."""

    payloads: PayloadLogConfig | None = None
    """Where the bodies of requests and answers go; unset is nowhere."""


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
