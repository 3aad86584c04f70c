"""Config of limits: of a model, of its latency, and of an API key."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field

from appliance.config.base import BaseConfig

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class LimitsConfig(BaseConfig):
    """How much a model takes on; a request beyond it is refused with 429 and `Retry-After`, before its prompt is read.

    Of several workers each has an equal share.
    """

    concurrent: Count | None = None
    """
    Most sequences under way at once; the next ones wait for their turn. In vLLM each text of a batch and each choice of
    each prompt is a sequence, elsewhere each request. Requests are let in first come first served. One with many
    sequences has at most half of the places, rounded up, and each place that gets free goes to the request that has
    fewest, so it takes turns with the others. Unset is as many as vLLM computes at once (`engine.max_num_seqs`), which
    several workers share too, and no limit where something else computes.
    """

    inputs_per_request: Count = 2048
    """
    Most texts in one request: inputs, prompts, documents, pairs; more is 400. Proxies and classes of yours are asked
    whatever a client asks.
    """

    choices_per_request: Count = 128
    """
    Most choices for each prompt of one request (`n`), beams among them; more is 400. Proxies and classes of yours are
    asked whatever a client asks.
    """

    json_containers: Count = 50_000
    """
    Most JSON objects and lists in one request, at any depth; more is 400, before vLLM looks at any. A message with a
    text and an image has five. Proxies and classes of yours are asked whatever a client asks.
    """

    tokenizer_bytes: Count = 1024**2
    """
    Largest body of a request to `/tokenize` and `/detokenize`, in bytes; more is 413. As many of them, and of token
    counts, are under way at once as of other requests, and they wait for each other alone.
    """

    queued: Annotated[int, Field(ge=0)] = 1000
    """Most requests that wait for their turn; 0 lets none wait."""

    queued_tokens: Count | None = None
    """
    Most prompt tokens of all requests that wait, estimated from the size of their bodies by what the tokens of
    earlier ones were; unset is no limit. Leave it unset where bodies hold images or audio.
    """

    first_token_seconds: Seconds | None = None
    """
    Longest time from a request's arrival to the first token of its stream, in seconds, the wait for its turn
    included; then it is 504. Of an answer that is not streamed only the wait counts. Unset is no limit.
    """

    total_seconds: Seconds | None = None
    """
    Longest time from a request's arrival to the end of its answer, in seconds; then it is 504, or an error at the end
    of the stream, and the work is ended. It covers every try of a proxy together, where `timeouts` are of each one.
    Unset is no limit.
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
    """What a model promises to the requests it lets in."""

    ttft_seconds: Seconds | None = None
    """
    Time to first token, in seconds: a request that would wait longer, going by how long requests take now, is refused
    at once with 429 and `Retry-After`. An embedding or a score is all first token. Unset promises nothing.
    """


class KeyLimitsConfig(BaseConfig):
    """How much may be asked with one key; beyond it is 429 with `Retry-After`, and `x-ratelimit-*` headers tell what is
    left.

    Unused minutes do not add up: a key that rested may spend one minute's worth at once. Of several workers each has
    an equal share.
    """

    requests_per_minute: Count | None = None
    """
    Most requests in a minute, each of which is one whatever it asks for; what it asks for is counted in tokens. Unset
    is no limit.
    """

    tokens_per_minute: Count | None = None
    """
    Most tokens in a minute, of prompts and answers. A prompt is estimated from its size when it comes, and the real
    numbers replace the estimate when it is answered. Unset is no limit.
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
