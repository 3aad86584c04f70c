"""Config of upstreams: connections, health checks, retries, circuit breaker, rewrites and the response cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, JsonValue, SecretStr, model_validator

from appliance.config.base import BaseConfig, without_free_keys

Seconds = Annotated[float, Field(gt=0)]

Balance = Literal["least_inflight", "round_robin", "prefix_affinity"]
Status = Annotated[int, Field(ge=400, le=599)]

Fields = Annotated[dict[str, JsonValue], BeforeValidator(without_free_keys)]

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


class PoolMemberConfig(UpstreamConfig):
    """One of the servers that answer for a proxy."""

    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """What probes, logs and metrics call it; unset is its host and port."""

    weight: Annotated[int, Field(ge=1, le=100)] = 1
    """Its share of the requests, beside the weights of the others; one that is to get none is left out."""


class HeadersConfig(BaseConfig):
    """Which headers travel beside those that always do: traces, `X-Request-Id`, and what says how to read a body."""

    forward: tuple[HeaderName, ...] = ()
    """Headers of the client's that travel upstream, such as `Authorization`, which does not unless named here."""

    set: dict[str, HeaderValue] = Field(default_factory=dict)
    """Headers of every request to every upstream; their values are never shown."""

    expose: tuple[HeaderName, ...] = ()
    """
    Headers of an upstream's answers that clients get beside those they always do: waits, limits (`x-ratelimit-*`,
    `anthropic-*`, `openai-*`), `Cache-Control` and `Content-Disposition`.
    """

    drop: tuple[HeaderName, ...] = ()
    """Headers that travel neither to the upstream nor back to the client."""


class CircuitBreakerConfig(BaseConfig):
    """When an upstream is left alone."""

    failures: Annotated[int, Field(ge=1)] = 5
    """Failures in a row that open the breaker: no answer, a timeout, a status of 500 or more, an answer cut off."""

    open_seconds: Annotated[float, Field(gt=0)] = 10
    """How long the upstream is then left alone, in seconds, before one request tries it again."""

    outlier_margin: Annotated[float, Field(gt=0, le=1)] = 0.3
    """
    How much larger the share of failed requests may be than that of the other upstreams together, over about a minute;
    what lies beyond is left alone too, but never more than half of the upstreams.
    """


class HealthCheckConfig(BaseConfig):
    """How upstreams are asked, on an interval and never per request, whether they are there."""

    path: Annotated[str, Field(pattern=r"^/[^\s?#]*$")] | None = "/v1/models"
    """
    Path of a GET whose good answer means health, joined to the upstream's `url`: `/health` for vLLM, `/readyz` for
    an appliance; null never asks, and then only the breaker speaks.
    """

    interval_seconds: Annotated[float, Field(gt=0)] = 10
    """Time between two checks of an upstream, in seconds."""

    timeout_seconds: Annotated[float, Field(gt=0)] = 5
    """How long one check may take, in seconds."""

    failures: Annotated[int, Field(ge=1)] = 2
    """Failed checks in a row after which an upstream that was healthy gets no more requests; one good one ends that."""


class RetryConfig(BaseConfig):
    """
    When a request is asked again: only before the first byte of an answer, and elsewhere if there is an elsewhere.
    """

    attempts: Annotated[int, Field(ge=0, le=10)] = 2
    """Most further tries of one request; 0 never tries again."""

    statuses: tuple[Status, ...] = (429, 502, 503, 504)
    """Answers that are tried again; 429 only at another upstream."""

    generations: bool = False
    """
    Whether text, speech and images are asked for again although an upstream may have begun to make them, which are then
    made and billed more than once. Unset asks again only where nothing was begun: no connection came about, or the
    answer is 429 or 503.
    """

    budget_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Most retries as a share of all requests, beyond a few."""

    backoff_seconds: Annotated[float, Field(ge=0)] = 0.1
    """Wait before the second try at the same upstream, in seconds; it doubles with each further one."""


class RequestRewriteConfig(BaseConfig):
    """What is changed in the JSON of every request; forms, and all that is not named here, pass as they came."""

    defaults: Fields = Field(default_factory=dict)
    """Fields for requests that lack them, such as `temperature: 0.2`; mappings are filled up key by key."""

    override: Fields = Field(default_factory=dict)
    """Fields that have this value whatever the client says; mappings are laid over the client's key by key."""

    drop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """
    Fields of the client's that do not travel, such as `user`. With `stream_options`, for an upstream that refuses it,
    the usage of streams is not asked for either, and the tokens of an answer are counted by its events.
    """

    system_prompt: Annotated[str, Field(min_length=1)] | None = None
    """
    Text that goes before the client's own system prompt in chat completions, responses and messages;
    unset leaves it alone.
    """


class ResponseCacheConfig(BaseConfig):
    """Whether answers are kept: those of embeddings, rerank, scores and classes, and of completions without streaming
    that ask for temperature 0 or name a seed.

    A call with `Cache-Control: no-store` is neither answered from it nor kept, one with `no-cache` only kept anew.
    """

    max_bytes: Annotated[int, Field(ge=1)] = 64 * 1024 * 1024
    """Most memory for kept answers, in bytes and in each worker; the longest unused go first."""

    max_age_seconds: Annotated[float, Field(gt=0)] = 3600
    """How long an answer is kept, in seconds."""

    shared: bool = False
    """
    Whether one API key may get what was kept for another; unset keeps them apart, so that neither an answer nor the
    time it takes tells of what others asked.
    """
