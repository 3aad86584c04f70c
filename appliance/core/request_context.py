"""What becomes known of one request between its first byte and its last."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

CLIENT_CLOSED_REQUEST = 499
"""The status of a request whose client left before the end of its answer: nginx's number, for HTTP has none."""


@dataclass(slots=True)
class RequestContext:
    """One request; each field is written by the one who learns it, and None where nobody did.

    Moments are seconds of `time.monotonic()`.
    """

    id: str
    method: str = ""
    """The one of HTTP; gRPC has none."""
    path: str = ""
    """What was asked for, without its query, which may hold secrets."""
    route: str | None = None
    """The path as its route has it, with names in braces; one of a few."""
    protocol: str | None = None
    """`openai`, `oip_v1`, `oip_v2` or `oip_grpc`."""
    trace: str | None = None
    """The trace it belongs to, as 32 hexadecimal digits; None where nobody traces."""
    trace_headers: Mapping[str, str] = field(default_factory=dict)
    """What tells whoever works for it of the trace; empty where nobody traces."""
    is_probe: bool = False
    """Whether a machine asks it every few seconds."""
    began: float = field(default_factory=time.monotonic)
    key: str | None = None
    """Name of the API key it came with, never the key."""
    model: str | None = None
    """Name of the model that answers, not an alias."""
    operation: str | None = None
    admitted: float | None = None
    """When its model began on it."""
    queued: float | None = None
    """When it began to wait, for a slot here or in the engine; None where it did not, or nobody can tell."""
    scheduled: float | None = None
    """When the engine began to compute."""
    first: float | None = None
    """When the first token of its answer was there: the first bytes of a stream, or when the engine says it was."""
    last: float | None = None
    """When the engine had made the last token."""
    ended: float | None = None
    is_streamed: bool = False
    status: int | None = None
    """What was sent, in HTTP's numbers; 499 where the client left before the end."""
    grpc_status: str | None = None
    """The same in gRPC's words, where it was sent in them."""
    late_status: int | None = None
    """What it would have been, where an error ended a stream whose status had been sent."""
    error: str | None = None
    """The class of the error that ended it."""
    refused: str | None = None
    """Why it was not let in, in one word; None where it was."""
    sequences: int = 0
    """Begun for it in engines of ours: each text of a batch, each choice of each prompt."""
    is_metered: bool = False
    """Whether an engine of ours counts its tokens, so that what the answer says of them is known already."""
    prompt_tokens: int | None = None
    """Of all that was computed for it; None where nobody can tell."""
    cached_tokens: int | None = None
    """Those of the prompt that the engine knew already."""
    output_tokens: int | None = None
    settled_prompt_tokens: int = 0
    """Of its prompt tokens, those of its calls that are over: one request may need several calls."""
    settled_output_tokens: int = 0

    def settle(self) -> tuple[int | None, int]:
        """Prompt and output tokens of a call that is over, those of the request that no other call has settled; None of
        the prompt where nobody counted them.
        """
        output = (self.output_tokens or 0) - self.settled_output_tokens
        self.settled_output_tokens += output
        if self.prompt_tokens is None:
            return None, output
        prompt = self.prompt_tokens - self.settled_prompt_tokens
        self.settled_prompt_tokens += prompt
        return prompt, output

    @property
    def outcome(self) -> int:
        """How it ended, whatever was sent before; 0 is that nothing was."""
        return self.late_status or self.status or 0


_current: ContextVar[RequestContext | None] = ContextVar("record", default=None)


def current_context() -> RequestContext | None:
    """The record of the request that this task works for; None outside of any."""
    return _current.get()


@contextmanager
def use_context(request_id: str) -> Iterator[RequestContext]:
    """
    Begin the record of a request; it is the current one until the end of the block, in tasks begun meanwhile as well.
    """
    record = RequestContext(request_id)
    token = _current.set(record)
    try:
        yield record
    finally:
        record.ended = time.monotonic()
        _current.reset(token)
