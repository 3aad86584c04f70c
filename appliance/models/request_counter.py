"""The calls of one model, counted."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(slots=True)
class RequestCounter:
    """How many calls ended well, how many did not, and the nanoseconds both took; written by `calls` alone."""

    good: int = 0
    good_ns: int = 0
    bad: int = 0
    bad_ns: int = 0
    last_ms: int = 0
    """When the last call began, in milliseconds since 1970; 0 is never."""

    def count(self, began_ns: int, *, is_good: bool) -> None:
        """Count a call that ends now and began then, on the monotonic clock."""
        taken = time.monotonic_ns() - began_ns
        self.last_ms = (time.time_ns() - taken) // 1_000_000
        if is_good:
            self.good, self.good_ns = self.good + 1, self.good_ns + taken
        else:
            self.bad, self.bad_ns = self.bad + 1, self.bad_ns + taken
