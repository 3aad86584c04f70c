"""Config of limits: of a model, of its latency, and of an API key."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field

from appliance.config.base import BaseConfig

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class LimitsConfig(BaseConfig):
    """Limits of a model's load; a request beyond them gets 429 with `Retry-After`, before its prompt is tokenized.

    Several workers divide each limit equally.
    """

    concurrent: Count | None = None
    """Limit of running sequences; further requests are queued. In vLLM each text of a batch and each choice of each
    prompt is a sequence; for other models each request is one. Requests are admitted first come first served. A request
    with many sequences gets at most half of the slots, rounded up, and each free slot goes to the request that has the
    fewest. Unset is the engine's `engine.max_num_seqs`, which several workers share too, and no limit for models
    without an engine of vLLM.
    """

    inputs_per_request: Count = 2048
    """Limit of texts, prompts, documents or pairs in one request; more is 400. Not for proxies and Python classes."""

    choices_per_request: Count = 128
    """Limit of choices for each prompt (`n`), including beams; more is 400. Not for proxies and Python classes."""

    json_containers: Count = 50_000
    """Limit of JSON objects and lists in one request, at any depth; more is 400, before vLLM validates it. A message
    with a text and an image has five. It does not apply to proxies and Python classes.
    """

    tokenizer_bytes: Count = 1024**2
    """Limit of the body of a request to `/tokenize` and `/detokenize`, in bytes; a larger one is 413. These requests
    and token counts have their own queue, with the same limit of running requests.
    """

    queued: Annotated[int, Field(ge=0)] = 1000
    """Limit of queued requests; 0 queues none."""

    queued_tokens: Count | None = None
    """Limit of the prompt tokens of all queued requests, estimated from the size of their bodies and the ratio of
    earlier requests; unset is no limit. Leave it unset if bodies contain images or audio.
    """

    first_token_seconds: Seconds | None = None
    """Time limit from the arrival of a request to the first token of its stream, in seconds, including the time in the
    queue; then it is 504. Without streaming only the time in the queue counts. Unset is no limit.
    """

    total_seconds: Seconds | None = None
    """Time limit from the arrival of a request to the end of its response, in seconds; then it is 504, or an error at
    the end of the stream, and its work is aborted. For a proxy it covers all attempts together; `timeouts` cover each
    attempt. Unset is no limit.
    """

    def share(self, workers: int) -> Self:
        """Return the limits of one of several workers."""
        counts = {
            "concurrent": share(self.concurrent, workers),
            "queued": -(-self.queued // workers),
            "queued_tokens": share(self.queued_tokens, workers),
        }
        return self.model_copy(update=counts)


class SloConfig(BaseConfig):
    """The latency that admitted requests are promised."""

    ttft_seconds: Seconds | None = None
    """Time to first token, in seconds: if the estimated wait is longer, the request gets 429 with `Retry-After` at
    once. The estimate comes from the current duration of requests. For embeddings and scores the whole response counts
    as the first token. Unset promises nothing.
    """


class KeyLimitsConfig(BaseConfig):
    """Rate limits of one API key; a request beyond them gets 429 with `Retry-After`, and the `x-ratelimit-*` headers
    report what is left.

    The burst is one minute's limit: unused minutes do not add up. Several workers divide each limit equally.
    """

    requests_per_minute: Count | None = None
    """Limit of requests per minute; a batch counts as one request, and its size counts in tokens. Unset is no limit."""

    tokens_per_minute: Count | None = None
    """Limit of tokens per minute, of prompts and responses together. The tokens of a prompt are first estimated from
    its size, and corrected once the response is complete. Unset is no limit.
    """

    def share(self, workers: int) -> Self:
        """Return the limits of one of several workers."""
        counts = {
            "requests_per_minute": share(self.requests_per_minute, workers),
            "tokens_per_minute": share(self.tokens_per_minute, workers),
        }
        return self.model_copy(update=counts)


def share(count: int | None, workers: int) -> int | None:
    """Return the share of one of several workers in a limit; None is no limit."""
    # Rounded up: a share of zero would refuse everything.
    return None if count is None else -(-count // workers)
