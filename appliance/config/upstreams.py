"""The section of one upstream: where it is, how it is asked, how long it may take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, SecretStr, model_validator

from appliance.config.base import BaseConfig

Seconds = Annotated[float, Field(gt=0)]

# RFC 9110, section 5.6.2.
HEADER_NAME = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
HeaderName = Annotated[str, Field(pattern=HEADER_NAME)]

# What an HTTP header can carry; a line break in it would be a header of its own.
HeaderValue = Annotated[
    SecretStr, Field(json_schema_extra={"pattern": r"^[\t\x20-\x7e]*$", "description": "A line of ASCII text."})
]


class TimeoutsConfig(BaseConfig):
    """How long each part of a request may take."""

    connect_seconds: Seconds = 5
    """Until the connection stands, in seconds."""

    first_byte_seconds: Seconds = 600
    """From the request to the first byte of its answer, in seconds; without streaming that is the whole generation."""

    idle_seconds: Seconds = 120
    """Longest silence between two bytes of an answer, in seconds."""

    total_seconds: Seconds | None = None
    """The whole request, in seconds; unset is no limit."""


class UpstreamTlsConfig(BaseConfig):
    """Whom an `https://` upstream is trusted by, and the certificate it is shown."""

    ca: Path | None = None
    """
    File of the authorities in PEM that the upstream's certificate must be of, in the place of the system's; unset is
    the system's, or those of `SSL_CERT_FILE`.
    """

    certificate: Path | None = None
    """File of the certificate in PEM that is shown to an upstream that asks for one; unset shows none."""

    key: Path | None = None
    """File of its private key in PEM; unset where the file of the certificate has it too."""

    key_password: SecretStr | None = None
    """What the file of the key is encrypted with; unset is nothing."""

    @model_validator(mode="after")
    def _has_certificate(self) -> Self:
        if self.certificate is None and (self.key is not None or self.key_password is not None):
            raise ValueError("has a key without its certificate; must have certificate too")
        return self


class UpstreamConfig(BaseConfig):
    """A server that speaks OpenAI's protocol."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?(\?[^\s#]*)?$")]
    """OpenAI base URL, with or without `/v1`, such as `http://llm:8000` or `https://api.openai.com/v1`."""

    api_key: Annotated[SecretStr, Field(json_schema_extra={"pattern": r"^[\x21-\x7e]*$"})] | None = None
    """Key sent as `Authorization: Bearer`, best as `${env:NAME}` or `${file:/path}`; unset or empty sends none."""

    model: Annotated[str, Field(min_length=1)] | None = None
    """The name the upstream knows the model by; unset is the name of this model."""

    headers: dict[str, HeaderValue] = Field(default_factory=dict)
    """Headers that every request to it carries, such as `x-api-key`; their values are never shown."""

    tls: UpstreamTlsConfig | None = None
    """How an `https://` upstream proves who it is, and we do; unset trusts what the system trusts."""

    timeouts: TimeoutsConfig = TimeoutsConfig()
    """How long each part of a request may take."""

    max_response_bytes: Annotated[int, Field(ge=1024)] = 128 * 1024 * 1024
    """
    Longest answer that is held whole, such as JSON, and longest line of a stream, in bytes and without its content
    coding; a longer one is 502.
    """

    @model_validator(mode="after")
    def _has_tls(self) -> Self:
        if self.tls is not None and not self.url.startswith("https://"):
            raise ValueError("has tls for a url without it; the url must begin with https://")
        return self
