"""Config of the server: addresses, API keys, TLS and CORS, limits and timeouts of requests, draining."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PlainSerializer, SecretStr, model_validator

from appliance.config.base import BaseConfig, Change, text_like
from appliance.config.limits import KeyLimitsConfig, Seconds
from appliance.core.model import Operation

Port = Annotated[int, Field(ge=1, le=65535)]

HostName = Annotated[str, text_like(r"^(\*|(\*\.)?[^\s/:*@]+)$", "the name of a host without a port, *.NAME or *")]
"""The name of a host without a port."""

MIN_KEY_LENGTH = 16
"""Shorter keys can be guessed."""

_REMEDY = "`appliance key` makes a good one"


def digest_of(value: bytes) -> str:
    """Return the SHA-256 of a key in hexadecimal; the key itself is not kept."""
    return hashlib.sha256(value).hexdigest()


def new_key() -> tuple[str, str]:
    """Return a random key and its SHA-256 in hexadecimal."""
    # 256 bits, as many as the SHA-256 that the file has of it.
    key = f"sk-{secrets.token_urlsafe(32)}"
    return key, digest_of(key.encode())


def _masked(_digest: str) -> str:
    return "***"


def _validated_digest(value: str) -> str:
    # The messages do not quote the value, which may be a good key that was pasted badly.
    if len(value) < MIN_KEY_LENGTH:
        raise ValueError(f"is a weak key; must have at least {MIN_KEY_LENGTH} characters; {_REMEDY}")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError(f"cannot be sent in a header; must be printable ASCII without spaces; {_REMEDY}")
    return digest_of(value.encode())


class KeyConfig(BaseConfig):
    """One API key: its value or its SHA-256, and its permissions."""

    name: Annotated[
        str,
        text_like(
            r"^[A-Za-z0-9][A-Za-z0-9._@/-]*$",
            "letters, digits and . _ / @ -, with a letter or a digit first",
            max_length=64,
        ),
    ]
    """Name of the key in logs and metrics; letters, digits and `. _ / @ -`."""

    value: Annotated[str, AfterValidator(_validated_digest), PlainSerializer(_masked)] | None = None
    """The key, 16 characters or more, from the environment or a file: `${env:NAME}`, `${file:/run/secrets/key}`. Only
    its SHA-256 is kept. Unset if `sha256` is set.
    """

    sha256: (
        Annotated[str, text_like("^[0-9a-fA-F]{64}$", "64 digits from 0 to f; `appliance key` prints them")] | None
    ) = None
    """SHA-256 of the key in hexadecimal, printed by `appliance key`, so that the file contains no secret."""

    models: tuple[str, ...] | None = None
    """Names of the models that the key may use and list. The name of a model includes all its names; the name of an
    alias or an adapter permits only itself. Unset is every model.
    """

    operations: tuple[Operation, ...] | None = None
    """Operations that the key may use; `[]` permits only listings and metrics, as for Prometheus. Unset is all."""

    limits: KeyLimitsConfig = KeyLimitsConfig()
    """Rate limits of the key; unset is no limit."""

    admin: bool = False
    """Whether the key may load and unload models, if `server.admin` is enabled."""

    @model_validator(mode="after")
    def _has_one_secret(self) -> Self:
        if self.value is None and self.sha256 is None:
            raise ValueError(f"has neither value nor sha256; must have one of them; {_REMEDY}")
        if self.value is not None and self.sha256 is not None:
            raise ValueError("has a value and a sha256; must have one of them")
        return self

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the key."""
        return bytes.fromhex(self.value or self.sha256 or "")


class TlsConfig(BaseConfig):
    """The certificate of the server. Changed files are read again without closing a connection."""

    certificate: Path
    """PEM file of the certificate, followed by its intermediate certificates."""

    key: Path
    """PEM file of the private key: RSA of 2048 to 4096 bits, ECDSA on P-256 or P-384, or Ed25519."""

    key_password: Annotated[SecretStr, Field(min_length=1)] | None = None
    """Password of the encrypted private key; unset if it is not encrypted."""

    client_ca: Path | None = None
    """PEM file of the authorities for client certificates; unset requires no client certificate. A platform without a
    certificate then sends its probes to `probe_port`, which has no TLS.
    """


class CorsConfig(BaseConfig):
    """Origins whose pages may send requests from a browser."""

    origins: Annotated[
        tuple[
            Annotated[
                str,
                text_like(
                    r"^(\*|https?://[^/\s*,]+)$",
                    "http:// or https:// and a host, with its port and without a path, or *",
                ),
            ],
            ...,
        ],
        Field(min_length=1),
    ]
    """Origins such as `https://chat.example.com`, with the port if it is not the default; `*` is every page."""


class ServerLimitsConfig(BaseConfig):
    """Limits of the structure of a request, for all models."""

    json_depth: Annotated[int, Field(ge=8, le=500)] = 100
    """Limit of nested objects and lists in a body; a deeper one is 400, before it is decoded."""

    json_members: Annotated[int, Field(ge=16, le=10_000)] = 1000
    """Limit of members of a body's outermost object; more is 400. Nested objects are not counted."""

    form_parts: Annotated[int, Field(ge=8, le=1000)] = 100
    """Limit of fields and files in a form; more is 400. The header of each may have eight lines of 4 KiB."""


class ServerTimeoutsConfig(BaseConfig):
    """Time limits for clients."""

    header_seconds: Seconds = 30
    """Time limit to send the head of a request, in seconds; then the connection is closed, and so is one that has been
    idle for this time. A connection that has never sent anything is not closed.
    """

    body_seconds: Seconds = 120
    """Time limit to send the whole body of a request, in seconds; then it is 408."""

    send_seconds: Seconds = 60
    """Time limit for a client that reads nothing of its response, in seconds; then the request is aborted, so that it
    does not occupy a slot of the model.
    """


class ServerConfig(BaseConfig):
    """The listeners of the server, its access rules and its shutdown."""

    host: Annotated[str, Field(min_length=1)] = "0.0.0.0"  # noqa: S104 - a server in a container
    """Address to listen on."""

    port: Port = 8080
    """Port of all routes."""

    probe_port: Port | None = None
    """Port of a second listener with only probes and metrics, in its own thread, so that probes respond even if
    connections are exhausted or the event loop is blocked; unset is none.
    """

    grpc_port: Port | None = None
    """Port of the Open Inference Protocol over gRPC, with its health service and reflection; unset is none."""

    page: bool = True
    """Whether `/` serves a web page with the models, a playground and the config without secrets."""

    api_keys: Annotated[Annotated[tuple[KeyConfig, ...], Field(min_length=1)] | None, Change.HOT] = None
    """API keys of clients; if there are any, everything except the probes requires one, as `Authorization: Bearer KEY`,
    `x-api-key` or `api-key`. Unset requires none.
    """

    metrics: Annotated[Literal["open", "closed"], Change.HOT] = "closed"
    """Whether `/metrics` is open without a key when there are keys; `closed` requires a key without `models`. The
    metrics of `probe_port` are open.
    """

    tls: TlsConfig | None = None
    """The certificate of `port` and `grpc_port`, and the authorities of client certificates; unset has no TLS."""

    cors: CorsConfig | None = None
    """Origins whose pages may send requests from a browser; unset is none."""

    allowed_hosts: Annotated[tuple[HostName, ...], Field(min_length=1)] | None = None
    """Host names that clients of a server without `api_keys` may use, such as `chat.example.com` or `*.example.com`;
    `*` is every name. IP addresses, names without a dot and names below `localhost`, `local`, `internal` and `svc` need
    no entry, nor do probes, gRPC and TLS. If unset, other names are refused if `host` is the loopback address;
    otherwise programs may use any name, and only pages in a browser and `/config` are refused. This prevents DNS
    rebinding: a page that points its own name at this server to read its responses.
    """

    admin: Annotated[bool, Change.HOT] = False
    """Whether models may be loaded and unloaded through the model repository of the Open Inference Protocol, with a key
    that has `admin: true`. It requires `workers: 1`, and a key unless only trusted clients can connect. Unset is false.
    """

    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = 1
    """Number of processes that serve the port together. `auto` is one per core that this process may use, and one if a
    model has an engine. Each worker has its own connections and health checks, and an equal share of every limit.

    Several workers share each vLLM engine: the first one starts it, the others connect to it. Use them if one process
    cannot write tokens as fast as the devices produce them, tens of thousands per second; each worker takes about 1 GiB
    of memory and a core. With a shared engine, the server exits with a code that is not 0 if any worker dies, and
    changes of a model need a restart.
    """

    max_body_bytes: Annotated[int, Field(ge=1024)] = 32 * 1024 * 1024
    """Limit of a request body and of a gRPC message, in bytes; a larger one is 413, or RESOURCE_EXHAUSTED."""

    limits: Annotated[ServerLimitsConfig, Change.HOT] = ServerLimitsConfig()
    """Limits of the structure of a request."""

    timeouts: ServerTimeoutsConfig = ServerTimeoutsConfig()
    """Time limits for clients."""

    drain_delay_seconds: Annotated[float, Field(ge=0), Change.HOT] = 5
    """Time during which requests are still served after SIGTERM while readiness is 503, in seconds, so that load
    balancers can remove this server. Each response closes its connection; HTTP/2 and gRPC connections are closed at the
    end of the delay. 0 refuses new requests at once, for pods with a `preStop` hook; Ctrl-C always does.
    """

    drain_seconds: Annotated[float, Field(ge=0), Change.HOT] = 30
    """Time limit for running requests to finish after the delay, in seconds."""

    stall_seconds: Annotated[float, Field(gt=0)] = 30
    """Time for which the event loop may be blocked, for example by a model's code, before liveness is 503 on
    `probe_port`, in seconds. Meanwhile no request is served. After 5 seconds, or at the end of the blockage, the log
    has the reason.
    """

    watch: Annotated[bool, Change.HOT] = False
    """Whether changes of this file, and of files in `${file:}`, are applied automatically; if false, they are applied
    on SIGHUP. `appliance diff` shows what a change would do.
    """

    def key_limits(self, workers: int) -> Mapping[str, KeyLimitsConfig]:
        """Return the limits of each key in one of several workers, by the key's name."""
        return {key.name: key.limits.share(workers) for key in self.api_keys or ()}


@lru_cache(maxsize=256)
@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to a server that listens on `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
