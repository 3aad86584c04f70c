"""
What becomes known of one request between its first byte and its last.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(slots=True)
class Record:
    """
    One request; each field is written by the one who learns it, and None where nobody did.

    Moments are seconds of `time.monotonic()`.
    """

    id: str
    began: float = field(default_factory=time.monotonic)
    key: str | None = None
    """Name of the API key it came with, never the key."""
    model: str | None = None
    """Name of the model that answers, not an alias."""
    operation: str | None = None
    admitted: float | None = None
    """When its model began on it."""
    first: float | None = None
    """When the first bytes of its answer were there: of a stream those of the first token."""
    ended: float | None = None
    status: int | None = None
    refused: str | None = None
    """Why it was not let in, in one word; None where it was."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    settled_prompt_tokens: int = 0
    """Of its prompt tokens, those of its calls that are over: one request may need several calls."""
    settled_output_tokens: int = 0

    def settle(self) -> tuple[int | None, int]:
        """
        Prompt and output tokens of a call that is over, those of the request that no other call has settled; None
        where nobody counted.
        """
        if self.prompt_tokens is None:
            return None, 0
        prompt = self.prompt_tokens - self.settled_prompt_tokens
        output = (self.output_tokens or 0) - self.settled_output_tokens
        self.settled_prompt_tokens += prompt
        self.settled_output_tokens += output
        return prompt, output


_current: ContextVar[Record | None] = ContextVar("record", default=None)


def current() -> Record | None:
    """
    The record of the request that this task works for; None outside of any.
    """
    return _current.get()


@contextmanager
def recorded(request_id: str) -> Iterator[Record]:
    """
    Begin the record of a request; it is the current one until the end of the block, in tasks begun meanwhile as well.
    """
    record = Record(request_id)
    token = _current.set(record)
    try:
        yield record
    finally:
        record.ended = time.monotonic()
        _current.reset(token)
