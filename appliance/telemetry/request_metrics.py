"""What is counted of requests, for Prometheus; every label comes from a closed set.

Kept in its registry of the whole process, as its clients do, where `/metrics` and other workers find it.
Source of the buckets of times: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/.
"""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from appliance.core.model import Operation
from appliance.core.request_context import CLIENT_CLOSED_REQUEST, RequestContext

_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 327.68)
_FIRST_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60)
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
REFUSED = Counter("appliance_requests_refused", "Requests that were not let in.", ("model", "reason"))

# What a label says where there is nothing to say; nothing at all would be a series without the label.
_NONE = "none"

# What is answered with tokens, one after the other.
_WRITING = frozenset({Operation.CHAT_COMPLETION, Operation.COMPLETION, Operation.RESPONSE, Operation.MESSAGE})


def code(record: RequestContext) -> str:
    """The class of how it ended."""
    return str(CLIENT_CLOSED_REQUEST) if record.status == CLIENT_CLOSED_REQUEST else f"{record.outcome // 100}xx"


def time_to_first_token(record: RequestContext) -> float | None:
    """In seconds; None where no token is known to have come."""
    return None if record.first is None or record.operation not in _WRITING else record.first - record.began


def time_per_output_token(record: RequestContext) -> float | None:
    """In seconds, of the tokens after the first; None where that is unknown, or there are none."""
    end, tokens = record.last or record.ended, record.output_tokens or 0
    if record.first is None or record.operation not in _WRITING or end is None or tokens < 2:
        return None
    return max(0.0, end - record.first) / (tokens - 1)


def count(record: RequestContext) -> None:
    """Take in a request that has ended; one that no protocol took is nobody's, a page for one."""
    model, operation = record.model or _NONE, record.operation or _NONE
    if record.refused is not None:
        REFUSED.labels(model, record.refused).inc()
    if record.protocol is None or record.is_probe:
        return
    REQUESTS.labels(record.protocol, operation, model, code(record)).inc()
    if record.model is None or record.ended is None:
        return
    SECONDS.labels(record.protocol, operation, model).observe(record.ended - record.began)
    if (first := time_to_first_token(record)) is not None:
        FIRST_TOKEN.labels(model).observe(first)
    if (each := time_per_output_token(record)) is not None:
        PER_TOKEN.labels(model).observe(each)
    if record.sequences:
        SEQUENCES.labels(record.model).inc(record.sequences)
    directions = ("input", record.prompt_tokens), ("output", record.output_tokens), ("cached", record.cached_tokens)
    for direction, tokens in directions:
        if tokens:
            TOKENS.labels(model, direction).inc(tokens)
