"""Pauses in the interactive requests of a model, in which batches disturb hardly any of them.

An engine finishes the step that it computes before a new request begins, so a request that finds a batch running waits
for it. Batches therefore start after a pause that is long for the current traffic, and its length follows from how
often that was wrong: the weighted up-down method (Kaernbach, Perception & Psychophysics 49, 1991) converges to a pause
after which about 1 % of the requests find a batch running, so that the 95th percentile of their latency is kept.
"""

from __future__ import annotations

# The weights of a request that was disturbed and of one that was not: 2 ** 0.01 * 0.993 ** 0.99 is 1.
_UP, _DOWN = 2.0, 0.993

# The pause in mean intervals. Of random arrivals, 0.7 % come after five intervals; of regular ones, none after one.
_FIRST_FACTOR, _MIN_FACTOR, _MAX_FACTOR = 5.0, 0.05, 64.0

# A batch never waits for a longer pause, and a longer interval says nothing about the current traffic.
_MAX_SECONDS = 60.0

# The pause after the first request, when no interval is known.
_FIRST_SECONDS = 5.0

# The weight of the latest interval in the mean.
_WEIGHT = 0.1


class InteractiveTraffic:
    """The arrivals of interactive requests, and the pause after which batches may start."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._interval: float | None = None
        self._factor = _FIRST_FACTOR

    def arrive(self, now: float, *, is_disturbed: bool) -> None:
        """Note a request, and whether it found a batch running."""
        if self._last is not None:
            interval = min(now - self._last, _MAX_SECONDS)
            mean = interval if self._interval is None else self._interval
            self._interval = mean + _WEIGHT * (interval - mean)
        self._last = now
        factor = self._factor * (_UP if is_disturbed else _DOWN)
        self._factor = min(max(factor, _MIN_FACTOR), _MAX_FACTOR)

    def arrive_elsewhere(self, count: int, last: float, *, is_disturbed: bool) -> None:
        """Note requests of other processes, at even intervals; only the first of them is disturbed."""
        # Without an earlier one, their intervals are not known.
        first, count = (last, 1) if self._last is None else (min(self._last, last), count)
        for number in range(1, count + 1):
            self.arrive(first + (last - first) * number / count, is_disturbed=is_disturbed and number == 1)

    def pause_seconds(self, now: float) -> float:
        """Return the time until batches may start if no request comes; 0 is now."""
        if self._last is None:
            return 0.0
        pause = _FIRST_SECONDS if self._interval is None else min(self._factor * self._interval, _MAX_SECONDS)
        return max(0.0, self._last + pause - now)
