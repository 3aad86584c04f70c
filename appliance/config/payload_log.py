"""The section of the payload log."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SecretStr

from appliance.config.base import BaseConfig


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
