"""How far the bytes of one model are, over all of its parts, and how fast they come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# The rate is that of the last while: a stall shows, and a pause of a second does not.
_WINDOW_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class _Part:
    """One storage on its way: `already` are bytes of an earlier fetch, `total` is None where it is unknown."""

    already: int
    fetched: int
    total: int | None


class FetchProgress:
    """Heard in the thread that materializes and read in others, so each value is replaced whole."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.part = ""
        self._clock = clock
        self._parts: Mapping[str, _Part] = {}
        self._samples = deque([(clock(), 0)])

    def hear(self, part: str, fetched: int, total: int | None) -> None:
        """Take in how far one part is; the first bytes that are heard of are those of an earlier fetch."""
        before = self._parts.get(part)
        is_first = before is None or (before.total is None and before.fetched == 0)
        already = fetched if is_first or before is None else min(before.already, fetched)
        self._parts = {**self._parts, part: _Part(already, fetched, total)}
        self.part = part
        now = self._clock()
        self._samples.append((now, sum(each.fetched - each.already for each in self._parts.values())))
        while len(self._samples) > 2 and self._samples[1][0] < now - _WINDOW_SECONDS:
            self._samples.popleft()

    @property
    def fetched(self) -> int:
        """Bytes that are there."""
        return sum(each.fetched for each in self._parts.values())

    @property
    def total(self) -> int | None:
        """Bytes of all parts that have begun, or None while one of them is unknown."""
        sizes = [each.total for each in self._parts.values()]
        return None if not sizes or None in sizes else sum(size for size in sizes if size is not None)

    @property
    def rate(self) -> float:
        """Bytes a second over the last while."""
        (began, before), (_, now) = self._samples[0], self._samples[-1]
        return max(0, now - before) / max(self._clock() - began, 0.001)

    def describe(self) -> dict[str, Any]:  # Any: JSON values
        """Bytes, bytes a second, and seconds to go as far as they can be told."""
        rate, total = self.rate, self.total
        return {
            "part": self.part,
            "fetched_bytes": self.fetched,
            "total_bytes": total,
            "bytes_per_second": round(rate),
            "eta_seconds": None if total is None or rate < 1 else round((total - self.fetched) / rate, 1),
        }
