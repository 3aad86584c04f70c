"""Exponential backoff with jitter, for everything that is tried again."""

from __future__ import annotations

import random

# 2**30 times any first delay is longer than any limit; it keeps the power from overflowing.
_MAX_EXPONENT = 30


def backoff_seconds(failures: int, *, first_seconds: float, max_seconds: float) -> float:
    """Return the delay before the next attempt after so many consecutive failures, at least one.

    It doubles with each failure up to `max_seconds`. Jitter of 50 to 100 % keeps parallel attempts from coinciding.
    """
    delay = min(first_seconds * 2 ** min(failures - 1, _MAX_EXPONENT), max_seconds)
    return random.uniform(delay / 2, delay)  # noqa: S311 - not a secret
