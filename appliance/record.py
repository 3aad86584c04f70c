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
    """Of all that was computed for it; None where nobody can tell."""
    cached_tokens: int | None = None
    """Those of the prompt that the engine knew already."""
    output_tokens: int | None = None


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
