"""How requests went lately: counts that fade, and the one among several that does much worse than the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# Counts lose half of their weight in this time.
_HALF_LIFE_SECONDS = 30.0

# Fewer requests than these say nothing about a share.
_LEAST_REQUESTS = 10.0


class FailureWindow:
    """Good and bad requests of about the last minute; `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at = clock()
        self._good = self._bad = 0.0

    def add(self, *, is_good: bool) -> None:
        """Count one more."""
        self._fade()
        if is_good:
            self._good += 1
        else:
            self._bad += 1

    def clear(self) -> None:
        """Begin anew."""
        self._good = self._bad = 0.0

    def counts(self) -> tuple[float, float]:
        """The bad ones, and all."""
        self._fade()
        return self._bad, self._good + self._bad

    def _fade(self) -> None:
        now = self._clock()
        kept = 0.5 ** ((now - self._at) / _HALF_LIFE_SECONDS)
        self._at, self._good, self._bad = now, self._good * kept, self._bad * kept


def outlier(tallies: Sequence[FailureWindow], margin: float) -> FailureWindow | None:
    """The one whose share of bad requests is by more than `margin` above that of the others together; None mostly."""
    counts = [tally.counts() for tally in tallies]
    all_bad, all_count = (sum(column) for column in zip(*counts, strict=True)) if counts else (0.0, 0.0)
    worst, distance = None, margin
    for tally, (bad, number) in zip(tallies, counts, strict=True):
        others = all_count - number
        if number < _LEAST_REQUESTS or others < _LEAST_REQUESTS:
            continue
        above = bad / number - (all_bad - bad) / others
        if above > distance:
            worst, distance = tally, above
    return worst
