"""Capacity of one model: one unit for each sequence that is computed, shared fairly by the running requests.

A request has one unit from its turn on, and further ones while more of its sequences are computed. A free unit goes to
the request that has the fewest, which is max-min fairness (Bertsekas and Gallager, Data Networks, 6.5.2), so a request
with thousands of sequences takes turns with the others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

# One request may have one unit of so many, rounded up, so that there is room for others.
_MAX_SHARE_DIVISOR = 2


@dataclass(slots=True, eq=False)
class CapacityUnit:
    """Capacity for one sequence, taken at the moment `started`."""

    started: float


@dataclass(slots=True, eq=False)
class CapacityShare:
    """The units of one request."""

    units: set[CapacityUnit]
    idle: CapacityUnit | None
    """The unit in which nothing is computed now; a request keeps its last unit to its end."""
    sequences: int = 0
    """All sequences that have requested a unit."""
    waiting: deque[asyncio.Future[CapacityUnit]] = field(default_factory=deque)
    ticket: int = 0
    """Its position among the requests that have no unit."""
    is_closed: bool = False

    def first_waiting(self) -> asyncio.Future[CapacityUnit] | None:
        """Return the first of its sequences that still waits."""
        while self.waiting and self.waiting[0].done():
            self.waiting.popleft()
        return self.waiting[0] if self.waiting else None


class Capacity:
    """The units of a model; `limit` returns their number at each moment, None for no limit.

    `on_freed` is called when a unit may be free for somebody who waits.
    """

    def __init__(
        self, clock: Callable[[], float], limit: Callable[[], int | None], on_freed: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._limit = limit
        self._on_freed = on_freed
        self._tickets = count()
        # The oldest first: a dict keeps the order and removes any of them at once.
        self._used: dict[CapacityUnit, None] = {}
        # Requests whose sequences wait. Of those with equally many units the first is served, and becomes the last.
        self._waiting: dict[CapacityShare, None] = {}

    @property
    def used(self) -> int:
        """Units that are taken."""
        return len(self._used)

    @property
    def is_free(self) -> bool:
        """Whether a unit is free."""
        limit = self._limit()
        return limit is None or self.used < limit

    def start_times(self) -> Iterator[float]:
        """Return when each unit was taken, the oldest first."""
        return (unit.started for unit in self._used)

    def next_ticket(self) -> int:
        """Return the next position among the requests that have no unit."""
        return next(self._tickets)

    def open_share(self) -> CapacityShare:
        """Return the share of a request whose turn it is; to be closed with `close_share`."""
        unit = self._take()
        return CapacityShare({unit}, unit)

    async def acquire(self, share: CapacityShare) -> CapacityUnit:
        """Wait for a unit for the next sequence of a request; to be returned with `release`."""
        share.sequences += 1
        if (unit := share.idle) is not None:
            share.idle = None
            # A new unit, because the time of the sequence starts now.
            self._drop(share, unit)
            return self._give(share)
        turn: asyncio.Future[CapacityUnit] = asyncio.get_running_loop().create_future()
        share.waiting.append(turn)
        self._waiting[share] = None
        self._on_freed()
        try:
            return await turn
        except BaseException:
            # The unit may have been given while this task was being cancelled.
            if turn.done() and not turn.cancelled():
                self.release(share, turn.result())
            raise

    def release(self, share: CapacityShare, unit: CapacityUnit) -> None:
        """Return the unit of a sequence that has ended."""
        # The units of a closed share are already returned.
        if unit not in share.units:
            return
        is_waiting = share.first_waiting() is not None
        if len(share.units) == 1 and not is_waiting and not share.is_closed:
            share.idle = unit
            return
        self._drop(share, unit)
        if is_waiting and not share.units:
            share.ticket = self.next_ticket()
            self._move_to_end(share)
        self._on_freed()

    def close_share(self, share: CapacityShare) -> None:
        """Return all units of a request that has ended."""
        share.is_closed, share.idle = True, None
        self._waiting.pop(share, None)
        for turn in share.waiting:
            turn.cancel()
        for unit in tuple(share.units):
            self._drop(share, unit)
        self._on_freed()

    def poorest(self) -> CapacityShare | None:
        """Return the request with the fewest units among those that may have a further one."""
        for share in [share for share in self._waiting if share.first_waiting() is None]:
            del self._waiting[share]
        limit = self._limit()
        eligible = (
            share for share in self._waiting if limit is None or len(share.units) < -(-limit // _MAX_SHARE_DIVISOR)
        )
        return min(eligible, key=lambda share: len(share.units), default=None)

    def serve(self, share: CapacityShare) -> None:
        """Give a unit to the first sequence of this request that waits."""
        turn = share.first_waiting()
        if turn is None:
            raise AssertionError("no sequence of this request waits; this is a bug")
        turn.set_result(self._give(share))
        self._move_to_end(share)

    def _move_to_end(self, share: CapacityShare) -> None:
        self._waiting.pop(share, None)
        self._waiting[share] = None

    def _give(self, share: CapacityShare) -> CapacityUnit:
        unit = self._take()
        share.units.add(unit)
        return unit

    def _take(self) -> CapacityUnit:
        unit = CapacityUnit(self._clock())
        self._used[unit] = None
        return unit

    def _drop(self, share: CapacityShare, unit: CapacityUnit) -> None:
        del self._used[unit]
        share.units.remove(unit)
