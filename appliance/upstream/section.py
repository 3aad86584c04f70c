"""
The section of one upstream: where it is, how it is asked, how long it may take.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr

from appliance.section import Section

Seconds = Annotated[float, Field(gt=0)]

# RFC 9110, section 5.6.2.
HEADER_NAME = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
HeaderName = Annotated[str, Field(pattern=HEADER_NAME)]

# What an HTTP header can carry; a line break in it would be a header of its own.
HeaderValue = Annotated[
    SecretStr, Field(json_schema_extra={"pattern": r"^[\t\x20-\x7e]*$", "description": "A line of ASCII text."})
]


class TimeoutsSection(Section):
    """
    How long each part of a request may take.
    """

    connect_seconds: Seconds = 5
    """Until the connection stands, in seconds."""

    first_byte_seconds: Seconds = 600
    """From the request to the first byte of its answer, in seconds; without streaming that is the whole generation."""

    idle_seconds: Seconds = 120
    """Longest silence between two bytes of an answer, in seconds."""

    total_seconds: Seconds | None = None
    """The whole request, in seconds; unset is no limit."""


class UpstreamSection(Section):
    """
    A server that speaks OpenAI's protocol.
    """

    url: Annotated[str, Field(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?(\?[^\s#]*)?$")]
    """OpenAI base URL, with or without `/v1`, such as `http://llm:8000` or `https://api.openai.com/v1`."""

    api_key: Annotated[SecretStr, Field(json_schema_extra={"pattern": r"^[\x21-\x7e]*$"})] | None = None
    """Key sent as `Authorization: Bearer`, best as `${env:NAME}` or `${file:/path}`; unset or empty sends none."""

    model: Annotated[str, Field(min_length=1)] | None = None
    """The name the upstream knows the model by; unset is the name of this model."""

    headers: dict[str, HeaderValue] = Field(default_factory=dict)
    """Headers that every request to it carries, such as `x-api-key`; their values are never shown."""

    timeouts: TimeoutsSection = TimeoutsSection()
    """How long each part of a request may take."""
