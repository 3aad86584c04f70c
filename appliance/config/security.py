"""Config of access: API keys, TLS and CORS."""

from __future__ import annotations

import hashlib
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
    """One API key: its value or its SHA-256, and what it may be used for."""

    name: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._@/-]*$")]
    """Whose key it is, for logs and metrics; letters, digits and `. _ / @ -`."""

    value: Annotated[str, AfterValidator(_validated_digest), PlainSerializer(_masked)] | None = None
    """
    The key, 16 characters or more, from the environment or a file: `${env:NAME}`, `${file:/run/secrets/key}`.
    Only its SHA-256 is kept. Unset where `sha256` is given.
    """

    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = None
    """SHA-256 of the key in hexadecimal, which `appliance key` prints, so that the file holds no secret."""

    models: tuple[str, ...] | None = None
    """
    Names of the models it may use and see. The name of a model stands for all its names, that of an alias or an adapter
    for itself alone. Unset is every model.
    """

    operations: tuple[Operation, ...] | None = None
    """What it may ask of them; an empty list may only look, as one for Prometheus does. Unset is every operation."""

    limits: KeyLimitsConfig = KeyLimitsConfig()
    """How much may be asked with it in a minute; unset is no limit."""

    admin: bool = False
    """Whether it may load and unload models, where `server.admin` lets anybody."""

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
    """The certificate that clients see. Its files are read anew when they change, without a connection lost."""

    certificate: Path
    """File of the certificate in PEM, and of those between it and its authority after it."""

    key: Path
    """File of its private key in PEM: RSA of 2048 to 4096 bits, ECDSA on P-256 or P-384, or Ed25519."""

    key_password: Annotated[SecretStr, Field(min_length=1)] | None = None
    """What the file of the key is encrypted with; unset is nothing."""

    client_ca: Path | None = None
    """
    File of the authorities in PEM that clients' certificates must be of; unset asks clients for none. Probes of a
    platform that has no certificate then go to `probe_port`, which has no TLS.
    """


class CorsConfig(BaseConfig):
    """Pages of other origins whose scripts may ask this server."""

    origins: Annotated[
        tuple[Annotated[str, Field(pattern=r"^(\*|https?://[^/\s*,]+)$")], ...],
        Field(min_length=1),
    ]
    """Origins such as `https://chat.example.com`, with the port where it is another than usual; `*` is every page."""


@dataclass(frozen=True, slots=True)
class AuthConfig:
    """The keys, and whether metrics need one."""

    keys: Sequence[KeyConfig] = ()
    are_metrics_open: bool = False
