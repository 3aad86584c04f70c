"""
Where the appliance listens, who may ask, and how it lets go.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from appliance.section import Section

Port = Annotated[int, Field(ge=1, le=65535)]


class ServerSection(Section):
    """
    Where the appliance listens, and how it lets go.
    """

    host: Annotated[str, Field(min_length=1)] = "0.0.0.0"  # noqa: S104 - a server in a container
    """Address to listen on."""

    port: Port = 8080
    """Port of all routes."""

    probe_port: Port | None = None
    """
    Port of a second listener with probes and metrics only, so that a full connection table never fails a probe;
    unset is none.
    """

    grpc_port: Port | None = None
    """Port of the Open Inference Protocol over gRPC, with its health service and reflection; unset is none."""

    page: bool = True
    """Whether browsers get a page at `/`, with the models, a playground and the config, secrets left out."""

    admin: bool = False
    """
    Whether whoever reaches the server may load and unload its models, through the model repository of the Open
    Inference Protocol; it needs `workers: 1`. Unset is nobody.
    """

    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = 1
    """
    Processes that answer on the port together; more than one needs models without an engine, such as proxies.
    `auto` is one for each core this process may use, and one where a model has an engine. Each has its own
    connections and health checks.
    """

    max_body_bytes: Annotated[int, Field(ge=1024)] = 32 * 1024 * 1024
    """Largest request body, and message of gRPC; a larger one is 413, or RESOURCE_EXHAUSTED."""

    drain_seconds: Annotated[float, Field(ge=0)] = 30
    """How long requests under way may take to finish after SIGTERM."""
