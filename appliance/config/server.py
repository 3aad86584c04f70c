"""Config of the server: addresses, limits and timeouts of requests, draining."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import Field

from appliance.config.base import BaseConfig, Change
from appliance.config.limits import KeyLimitsConfig, Seconds
from appliance.config.security import AuthConfig, CorsConfig, KeyConfig, TlsConfig

Port = Annotated[int, Field(ge=1, le=65535)]

HostName = Annotated[str, Field(pattern=r"^(\*|(\*\.)?[^\s/:*@]+)$")]
"""The name of a host without a port."""


class ServerLimitsConfig(BaseConfig):
    """What a request may look like, whatever model it is for."""

    json_depth: Annotated[int, Field(ge=8, le=500)] = 100
    """Most objects and lists within each other in a body; a deeper one is 400, before anything decodes it."""

    json_members: Annotated[int, Field(ge=16, le=10_000)] = 1000
    """Most members of a body's outermost object; one with more is 400. Objects within it are not counted."""

    form_parts: Annotated[int, Field(ge=8, le=1000)] = 100
    """Most fields and files of a form; one with more is 400. The header of each has 4 KiB a line, and eight lines."""


class ServerTimeoutsConfig(BaseConfig):
    """How long clients may take."""

    header_seconds: Seconds = 30
    """
    Until a client has sent the head of a request, in seconds; then its connection is closed, as is one that has been
    idle for so long. A connection on which nothing was ever sent is left open.
    """

    body_seconds: Seconds = 120
    """Until a client has sent the whole body of a request, in seconds; then it is 408."""

    send_seconds: Seconds = 60
    """
    Longest time for which a client may take nothing of an answer that is there for it, in seconds; then its request is
    ended, so that it does not hold a place in a model.
    """


class ServerConfig(BaseConfig):
    """Where the appliance listens, and how it lets go."""

    host: Annotated[str, Field(min_length=1)] = "0.0.0.0"  # noqa: S104 - a server in a container
    """Address to listen on."""

    port: Port = 8080
    """Port of all routes."""

    probe_port: Port | None = None
    """
    Port of a second listener with probes and metrics only, in a thread of its own, so that neither a full connection
    table nor a blocked event loop keeps a probe waiting; unset is none.
    """

    grpc_port: Port | None = None
    """Port of the Open Inference Protocol over gRPC, with its health service and reflection; unset is none."""

    page: bool = True
    """Whether browsers get a page at `/`, with the models, a playground and the config, secrets left out."""

    api_keys: Annotated[Annotated[tuple[KeyConfig, ...], Field(min_length=1)] | None, Change.HOT] = None
    """
    Keys of those who may ask; everything but the probes then needs one, as `Authorization: Bearer KEY`, `x-api-key` or
    `api-key`. Unset asks nobody for a key.
    """

    metrics: Annotated[Literal["open", "closed"], Change.HOT] = "closed"
    """
    Whether `/metrics` answers without a key, where there are keys; `closed` needs one without `models`. The metrics of
    `probe_port` are open.
    """

    tls: TlsConfig | None = None
    """The certificate of `port` and `grpc_port`, and whose clients may connect; unset has no TLS."""

    cors: CorsConfig | None = None
    """Which other origins' pages may ask from a browser; unset is none."""

    allowed_hosts: Annotated[tuple[HostName, ...], Field(min_length=1)] | None = None
    """
    Names that a server without `api_keys` may be called by, such as `chat.example.com` or `*.example.com`; `*` is every
    name. IP addresses, names without a dot and names below `localhost`, `local`, `internal` and `svc` need no entry,
    nor do probes, gRPC and TLS. Unset, other names are refused where `host` is the loopback; elsewhere programs may use
    any name, and only pages in a browser and `/config` may not. It keeps a page from having its own name point at this
    server and reading its answers.
    """

    admin: Annotated[bool, Change.HOT] = False
    """
    Whether models may be loaded and unloaded through the model repository of the Open Inference Protocol, with a key
    that has `admin: true`; it needs `workers: 1`, and a key unless nobody else can connect. Unset is nobody.
    """

    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = 1
    """
    Processes that answer on the port together. `auto` is one for each core this process may use, and one where a model
    has an engine. Each has its own connections and health checks, and its share of every limit.

    Several workers share each engine of vLLM's: the first one starts it, the others join. That pays where one process
    cannot write tokens as fast as the devices make them, tens of thousands in a second; each worker takes about 1 GiB
    of memory and a core. The death of any worker is then the end of all, with an exit code that is not 0, and a model
    is not brought anew while it is served: its changes wait for a restart.
    """

    max_body_bytes: Annotated[int, Field(ge=1024)] = 32 * 1024 * 1024
    """Largest request body, and message of gRPC; a larger one is 413, or RESOURCE_EXHAUSTED."""

    limits: Annotated[ServerLimitsConfig, Change.HOT] = ServerLimitsConfig()
    """What a request may look like."""

    timeouts: ServerTimeoutsConfig = ServerTimeoutsConfig()
    """How long clients may take."""

    drain_delay_seconds: Annotated[float, Field(ge=0), Change.HOT] = 5
    """
    How long calls are still answered after SIGTERM, while readiness is 503 already: for as long as it takes until
    nobody is sent here any more, in seconds. Connections are closed with their next answer meanwhile, those of HTTP/2
    and gRPC at the end of it. 0 refuses new calls at once, where a `preStop` hook waits; Ctrl-C does so anyway.
    """

    drain_seconds: Annotated[float, Field(ge=0), Change.HOT] = 30
    """How long requests under way may take to finish after that."""

    stall_seconds: Annotated[float, Field(gt=0)] = 30
    """
    How long the event loop may be blocked, by a model's code for one, before liveness is 503 on `probe_port`; no
    request is answered meanwhile. The log says what blocks it after 5 seconds, or when this is over.
    """

    watch: Annotated[bool, Change.HOT] = False
    """
    Whether a change of this file, or of one that `${file:}` names, is applied without being asked; unset waits for
    SIGHUP. `appliance diff` says what a change would do.
    """

    @property
    def auth(self) -> AuthConfig:
        """What the authorizer needs."""
        return AuthConfig(self.api_keys or (), self.metrics == "open")

    def key_limits(self, workers: int) -> Mapping[str, KeyLimitsConfig]:
        """Return the limits of each key in one of several workers, by the key's name."""
        return {key.name: key.limits.share(workers) for key in self.api_keys or ()}


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to a server that listens on `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
