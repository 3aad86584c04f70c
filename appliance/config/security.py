"""Config of access: API keys, TLS and CORS."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, PlainSerializer, SecretStr, model_validator

from appliance.config.base import BaseConfig
from appliance.config.limits import KeyLimitsConfig
from appliance.core.model import Operation

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

    name: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._@/-]*$")]
    """Name of the key in logs and metrics; letters, digits and `. _ / @ -`."""

    value: Annotated[str, AfterValidator(_validated_digest), PlainSerializer(_masked)] | None = None
    """The key, 16 characters or more, from the environment or a file: `${env:NAME}`, `${file:/run/secrets/key}`. Only
    its SHA-256 is kept. Unset if `sha256` is set.
    """

    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = None
    """SHA-256 of the key in hexadecimal, printed by `appliance key`, so that the file contains no secret."""

    models: tuple[str, ...] | None = None
    """Names of the models that the key may use and list. The name of a model includes all its names; the name of an
    alias or an adapter permits only itself. Unset is every model.
    """

    operations: tuple[Operation, ...] | None = None
    """Operations that the key may use; an empty list permits only listings and metrics, for example for Prometheus.
    Unset is every operation.
    """

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
        tuple[Annotated[str, Field(pattern=r"^(\*|https?://[^/\s*,]+)$")], ...],
        Field(min_length=1),
    ]
    """Origins such as `https://chat.example.com`, with the port if it is not the default; `*` is every page."""


@dataclass(frozen=True, slots=True)
class AuthConfig:
    """The keys, and whether metrics need one."""

    keys: Sequence[KeyConfig] = ()
    are_metrics_open: bool = False
