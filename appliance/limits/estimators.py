"""Estimates for a request before it runs: its prompt tokens, and how long it would wait.

The wait in a queue is what is ahead in it over the rate at which it drains, and the rate is the capacity over the time
that each unit is held: Little's law (Operations Research 9.3, 1961), used so for language models by QLM
(https://arxiv.org/abs/2407.00047, "request waiting time estimator").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from math import ceil

# https://help.openai.com/en/articles/4936856: a token is about four characters of English.
_TOKENS_PER_BYTE = 0.25

# Earlier requests weigh as much as this many bytes, so that the estimate follows recent requests.
_MEMORY_BYTES = 256 * 1024

# How many of the latest measurements are used.
_DURATIONS = 64
_FIRST_TOKENS = 32

# Older measurements are ignored. If they were bad, no request was accepted that could have shown an improvement.
_MAX_AGE_SECONDS = 60.0

# The percentile of the measured times to first token that is expected of the next one.
_PERCENTILE = 80

# More running requests than there will ever be, as a number of bits.
_LEVELS = 33


class TokenEstimator:
    """Prompt tokens per byte of a request body, learned from requests whose tokens were counted."""

    def __init__(self) -> None:
        self._bytes = 1024.0
        self._tokens = self._bytes * _TOKENS_PER_BYTE

    def learn(self, size: int, tokens: int) -> None:
        """Learn that a body of this many bytes had this many prompt tokens."""
        kept = min(1.0, _MEMORY_BYTES / (self._bytes + size))
        self._bytes = self._bytes * kept + size
        self._tokens = self._tokens * kept + tokens

    def tokens(self, size: int) -> int:
        """Return the estimated prompt tokens of a body of this many bytes."""
        return ceil(size * self._tokens / self._bytes)


class WaitEstimator:
    """Durations that were measured for one model, in seconds, and the waits that follow from them."""

    def __init__(self) -> None:
        self._durations: deque[float] = deque(maxlen=_DURATIONS)
        # By the number of running requests, each level twice the one before: the time to first token grows with it.
        self._first_tokens: list[deque[tuple[float, float]]] = [deque(maxlen=_FIRST_TOKENS) for _ in range(_LEVELS)]

    def learn_first_token(self, running: int, seconds: float, now: float) -> None:
        """Learn the time to first token of one of so many running requests."""
        self._first_tokens[running.bit_length()].append((now, seconds))

    def learn_duration(self, seconds: float) -> None:
        """Learn for how long a sequence held its capacity."""
        self._durations.append(seconds)

    def first_token_seconds(self, running: int, now: float) -> float:
        """Return the time from a request's turn to its first token, as one of so many; 0 if nothing is known."""
        # With fewer running requests it was no slower.
        for level in range(running.bit_length(), 0, -1):
            recent = sorted(seconds for at, seconds in self._first_tokens[level] if now - at < _MAX_AGE_SECONDS)
            if recent:
                return recent[(len(recent) - 1) * _PERCENTILE // 100]
        return 0.0

    def wait_seconds(self, ahead: int, concurrent: int, started: Iterable[float], now: float) -> float | None:
        """Return the time until the turn of a request with so many ahead of it; None while no request has ended.

        All capacity is held by sequences that `started` at these moments, the oldest first. Requests of equal length
        that started together end together, so the rate alone would promise too much.
        """
        if not self._durations:
            return None
        moments = list(started)
        age = now - sum(moments) / len(moments) if moments else 0.0
        # Capacity that is held for longer than ever before counts as long as it is held.
        duration = max(sum(self._durations) / len(self._durations), age)
        rounds, position = divmod(ahead, concurrent)
        oldest = next(islice(moments, position, None), now)
        end = max(0.0, oldest + duration - now) + rounds * duration
        return max(end, (ahead + 1) * duration / concurrent)
