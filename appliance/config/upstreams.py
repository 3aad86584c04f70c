"""Config of upstreams: connections, health checks, retries, circuit breaker, rewrites and the response cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, JsonValue, SecretStr, model_validator

from appliance.config.base import BaseConfig, text_like, without_free_keys

Seconds = Annotated[float, Field(gt=0)]

Balance = Literal["least_inflight", "round_robin", "prefix_affinity"]
Status = Annotated[int, Field(ge=400, le=599)]
Translated = Literal["messages", "responses"]

Fields = Annotated[dict[str, JsonValue], BeforeValidator(without_free_keys)]

_NO_SHARE = "a reserve has weight 1 and a higher priority, and an upstream that gets no requests is removed"

# RFC 9110, section 5.6.2.
HEADER_NAME = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
HeaderName = Annotated[str, text_like(HEADER_NAME, "the name of a header: letters, digits and -")]

# What an HTTP header can carry; a line break in it would be a header of its own.
HeaderValue = Annotated[
    SecretStr,
    Field(
        json_schema_extra={
            "pattern": r"^[\t\x20-\x7e]*$",
            "description": "A line of ASCII text.",
            "patternErrorMessage": "must be one line of ASCII text",
        }
    ),
]


class TimeoutsConfig(BaseConfig):
    """Time limits of a request to an upstream."""

    connect_seconds: Seconds = 5
    """Limit of the time to connect, in seconds."""

    first_byte_seconds: Seconds = 600
    """Limit of the time to the first byte of a response, in seconds; without streaming, of the whole generation."""

    idle_seconds: Seconds = 120
    """Limit of the silence between two bytes of a response, in seconds."""

    total_seconds: Seconds | None = None
    """Limit of the time of the whole request, in seconds; unset is no limit."""


class UpstreamTlsConfig(BaseConfig):
    """TLS of an `https://` upstream: trusted certificate authorities, and the client certificate."""

    ca: Path | None = None
    """PEM file of the trusted certificate authorities; unset trusts those of the system, or of `SSL_CERT_FILE`."""

    certificate: Path | None = None
    """PEM file of the client certificate, for upstreams that require one; unset sends none."""

    key: Path | None = None
    """PEM file of the private key; unset if the file of the certificate contains it."""

    key_password: SecretStr | None = None
    """Password of the encrypted private key; unset if it is not encrypted."""

    @model_validator(mode="after")
    def _has_certificate(self) -> Self:
        if self.certificate is None and (self.key is not None or self.key_password is not None):
            raise ValueError("has a key without its certificate; must have certificate too")
        return self


class UpstreamConfig(BaseConfig):
    """A server that speaks OpenAI's protocol."""

    url: Annotated[
        str,
        text_like(
            r"^https?://[^\s/?#@]+(/[^\s?#]*)?(\?[^\s#]*)?$",
            "http:// or https://, a host, and an optional port and path, such as http://llm:8000",
        ),
    ]
    """OpenAI base URL, with or without `/v1`, such as `http://llm:8000` or `https://api.openai.com/v1`."""

    api_key: (
        Annotated[
            SecretStr,
            Field(
                json_schema_extra={
                    "pattern": r"^[\x21-\x7e]*$",
                    "patternErrorMessage": "must be ASCII text without spaces",
                }
            ),
        ]
        | None
    ) = None
    """Key sent as `Authorization: Bearer`, best as `${env:NAME}` or `${file:/path}`; unset or empty sends none."""

    model: Annotated[str, Field(min_length=1)] | None = None
    """Name of the model at the upstream; unset is the name of this model."""

    headers: dict[str, HeaderValue] = Field(default_factory=dict)
    """Headers of every request to it, such as `x-api-key`; their values are never shown."""

    tls: UpstreamTlsConfig | None = None
    """TLS of an `https://` upstream; unset trusts what the system trusts."""

    timeouts: TimeoutsConfig = TimeoutsConfig()
    """Time limits of a request."""

    max_response_bytes: Annotated[int, Field(ge=1024)] = 128 * 1024 * 1024
    """Limit of a response that is read whole, and of a line of a stream, in decoded bytes; a longer one is 502."""

    @model_validator(mode="after")
    def _has_tls(self) -> Self:
        if self.tls is not None and not self.url.startswith("https://"):
            raise ValueError("has tls for a url without it; the url must begin with https://")
        return self


class HeadersConfig(BaseConfig):
    """Headers beside those that are always forwarded: traces, `X-Request-Id`, and headers that describe the body."""

    forward: tuple[HeaderName, ...] = ()
    """Headers of the client that upstreams get. `Authorization` is forwarded only if it is listed here."""

    set: dict[str, HeaderValue] = Field(default_factory=dict)
    """Headers of every request to every upstream; their values are never shown."""

    expose: tuple[HeaderName, ...] = ()
    """Headers of responses that clients get, beside those they always get: `Retry-After`, rate limits (`x-ratelimit-*`,
    `anthropic-*`, `openai-*`), `Cache-Control` and `Content-Disposition`.
    """

    drop: tuple[HeaderName, ...] = ()
    """Headers that are removed from requests and responses."""


class CircuitBreakerConfig(BaseConfig):
    """When an upstream that fails gets no requests."""

    failures: Annotated[int, Field(ge=1)] = 5
    """Consecutive failures that open it: no response, a truncated one, a timeout, or a status of 500 or more."""

    open_seconds: Annotated[float, Field(gt=0)] = 10
    """Time without requests to the upstream, in seconds, before one trial request is sent."""

    outlier_margin: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Limit of the difference between the failure rate of an upstream and that of the others together, over about a
    minute. Beyond it the upstream is ejected, which opens its circuit breaker, but at most half of the upstreams are.
    """


class HealthCheckConfig(BaseConfig):
    """Active health checks, at an interval and independent of requests."""

    path: Annotated[str, text_like(r"^/[^\s?#]*$", "a path that begins with /, without a query")] | None = "/v1/models"
    """Path of a GET request that succeeds if the upstream is healthy, joined to its `url`: `/health` for vLLM,
    `/readyz` for an appliance; null sends no health checks, and only the circuit breaker protects the upstream.
    """

    interval_seconds: Annotated[float, Field(gt=0)] = 10
    """Time between two checks of an upstream, in seconds."""

    timeout_seconds: Annotated[float, Field(gt=0)] = 5
    """Time limit of a check, in seconds."""

    failures: Annotated[int, Field(ge=1)] = 2
    """Consecutive failed checks after which an upstream gets no more requests; one success ends that."""


class RetryConfig(BaseConfig):
    """When a request is retried: only before the first byte of its response, at another upstream if possible."""

    attempts: Annotated[int, Field(ge=0, le=10)] = 2
    """Limit of the retries of a request; 0 never retries."""

    statuses: tuple[Status, ...] = (429, 502, 503, 504, 529)
    """Statuses that are retried; 429 only at another upstream."""

    generations: bool = False
    """Whether generations of text, speech and images are retried although an upstream may have begun them. They may
    then be computed and billed more than once. If false they are retried only if the request was not sent, or
    after 429, 503 or 529.
    """

    budget_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Limit of retries as a share of all requests; a few more are always allowed."""

    backoff_seconds: Annotated[float, Field(ge=0)] = 0.1
    """Delay before a retry at the same upstream, in seconds; it doubles with each further retry."""


_READ_FIELDS = {
    "model": "by which the request came here",
    "stream": "by which the client gets a stream or one whole response",
}
_CONTENT_FIELDS = frozenset({"messages", "prompt", "input"})


class RequestRewriteConfig(BaseConfig):
    """Changes of the JSON of every request; forms and all other fields stay as the client sent them."""

    defaults: Fields = Field(default_factory=dict)
    """Fields for requests without them or with null, such as `temperature: 0.2`; mappings are completed key by key."""

    override: Fields = Field(default_factory=dict)
    """Fields that always have this value; mappings are merged into the client's key by key."""

    drop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Fields that are removed, such as `user`. With `stream_options`, for an upstream that rejects it, a proxy does not
    request the usage of streams either, and the tokens of a response are counted by its events.
    """

    system_prompt: Annotated[str, Field(min_length=1)] | None = None
    """Text inserted before the client's system prompt in chat completions, responses and messages; unset is none."""

    @model_validator(mode="after")
    def _keeps_what_the_server_reads(self) -> Self:
        for name, role in _READ_FIELDS.items():
            if any(name in fields for fields in (self.defaults, self.override, self.drop)):
                raise ValueError(f"changes the field {name}, {role}; must leave it out")
        for name in _CONTENT_FIELDS.intersection(self.drop):
            raise ValueError(f"drops the field {name}, without which no request can be answered; must leave it out")
        return self


class PoolMemberConfig(UpstreamConfig):
    """One upstream of a proxy."""

    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Name in probes, logs and metrics; unset is its host and port."""

    priority: Annotated[int, Field(ge=0, le=100)] = 0
    """Group of the upstream, 0 first. A group gets requests only while no upstream of a lower number is available, and
    those that these failed or refused to begin: a paid API with `priority: 1` is the reserve of servers of your own.
    """

    weight: Annotated[
        int, Field(ge=1, le=100, json_schema_extra={"errorMessage": f"must be from 1 to 100; {_NO_SHARE}"})
    ] = 1
    """Share of the requests, relative to the weights of the other upstreams of its priority."""

    request: RequestRewriteConfig = RequestRewriteConfig()
    """Changes of the requests that it gets, after those of the model. Of a translated request its chat completion is
    changed; without `max_tokens` (`drop`) that one has its limit as `max_completion_tokens`.
    """

    translate: Annotated[tuple[Translated, ...], Field(json_schema_extra={"uniqueItems": True})] = ()
    """Protocols that the upstream lacks: `messages` (Anthropic's, with `count_tokens`) and `responses` (OpenAI's) are
    translated to its chat completions. Unset forwards them.
    """


class ResponseCacheConfig(BaseConfig):
    """The cache of responses: of embeddings, rerank, scores and classification, and of completions without streaming
    that have temperature 0 or a seed.

    A request with `Cache-Control: no-store` does not use the cache; one with `no-cache` replaces its entry.
    """

    max_bytes: Annotated[int, Field(ge=1)] = 64 * 1024 * 1024
    """Memory limit in bytes, in each worker; the least recently used entries are removed first."""

    max_age_seconds: Annotated[float, Field(gt=0)] = 3600
    """Lifetime of an entry, in seconds."""

    shared: bool = False
    """Whether API keys share entries. If false, no response and no latency reveals what others requested."""
