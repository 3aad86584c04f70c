"""How long a request would wait, going by how long the ones before it took.

The wait in a queue is what is ahead in it over the rate at which it drains, and the rate is the number of places over
the time that each is held: Little's law (Operations Research 9.3, 1961), used so for language models by QLM
(https://arxiv.org/abs/2407.00047, "request waiting time estimator").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice

# How many of the last requests speak for the next ones.
_HELD = 64
_FIRSTS = 32

# What was measured longer ago says little; if it was bad, nobody was let in who could have shown that it is over.
_FORGET_SECONDS = 60.0

# As many of a hundred got their first token sooner than is expected of the next one.
_SURE_PERCENT = 80

# More requests at once than there will ever be, as a number of bits.
_LEVELS = 33


class WaitEstimator:
    """What is measured of one model; moments and durations are in seconds."""

    def __init__(self) -> None:
        self._held: deque[float] = deque(maxlen=_HELD)
        # By the number of requests under way, each level twice the one before: the time to a first token grows with it.
        self._firsts: list[deque[tuple[float, float]]] = [deque(maxlen=_FIRSTS) for _ in range(_LEVELS)]

    def learn_first(self, running: int, taken: float, now: float) -> None:
        """One of so many requests under way had its first token after this time."""
        self._firsts[running.bit_length()].append((now, taken))

    def learn_held(self, taken: float) -> None:
        """A request held its place for this time."""
        self._held.append(taken)

    def first(self, running: int, now: float) -> float:
        """From a request's turn to its first token, as one of so many; 0 while nothing is known."""
        # Fewer at once were no slower than more will be.
        for level in range(running.bit_length(), 0, -1):
            recent = sorted(taken for at, taken in self._firsts[level] if now - at < _FORGET_SECONDS)
            if recent:
                return recent[(len(recent) - 1) * _SURE_PERCENT // 100]
        return 0.0

    def wait(self, ahead: int, concurrent: int, began: Iterable[float], now: float) -> float | None:
        """
        Until it is the turn of a request with so many ahead of it, all places being held by those that began at these
        moments, the oldest first; None while no request has ended.

        Requests of equal length that began together end together, so the rate alone would promise too much.
        """
        if not self._held:
            return None
        moments = list(began)
        age = now - sum(moments) / len(moments) if moments else 0.0
        # Places that are held for longer than ever count as long as they are.
        held = max(sum(self._held) / len(self._held), age)
        rounds, place = divmod(ahead, concurrent)
        oldest = next(islice(moments, place, None), now)
        ends = max(0.0, oldest + held - now) + rounds * held
        return max(ends, (ahead + 1) * held / concurrent)
