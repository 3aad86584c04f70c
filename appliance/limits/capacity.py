"""The places of one model, shared by the requests under way: one for each sequence that is computed.

A request has a place from its turn on, and further ones while more of its sequences are computed. A free place goes to
the request that has the fewest, which is max-min fairness (Bertsekas and Gallager, Data Networks, 6.5.2), so one with
thousands of sequences runs in turns with the others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

# One request may have one place of so many, rounded up: there is room for others, whatever it asks for.
_PART = 2


@dataclass(slots=True, eq=False)
class CapacityUnit:
    """Room for one sequence, taken at the moment `began`."""

    began: float


@dataclass(slots=True, eq=False)
class CapacityShare:
    """The places of one request."""

    places: set[CapacityUnit]
    idle: CapacityUnit | None
    """The one in which nothing is computed now; a request keeps its last one to its end."""
    sequences: int = 0
    """All that have asked for a place."""
    waiting: deque[asyncio.Future[CapacityUnit]] = field(default_factory=deque)
    ticket: int = 0
    """Its number in the queue of those who have no place."""
    is_over: bool = False

    @property
    def held(self) -> int:
        """How many it has."""
        return len(self.places)

    def next(self) -> asyncio.Future[CapacityUnit] | None:
        """The first of its sequences that still waits."""
        while self.waiting and self.waiting[0].done():
            self.waiting.popleft()
        return self.waiting[0] if self.waiting else None


class Capacity:
    """
    As many as `limit` says at each moment, None of which is no limit; `freed` is told that somebody may be served.
    """

    def __init__(self, clock: Callable[[], float], limit: Callable[[], int | None], freed: Callable[[], None]) -> None:
        self._clock = clock
        self._limit = limit
        self._freed = freed
        self._tickets = count()
        # The oldest first: a dict keeps the order, and lets go of any of them at once.
        self._held: dict[CapacityUnit, None] = {}
        # Requests with sequences that wait; of those that have as many the first is served, and then is the last.
        self._waiting: dict[CapacityShare, None] = {}

    @property
    def held(self) -> int:
        """Places that are taken."""
        return len(self._held)

    @property
    def is_open(self) -> bool:
        """Whether there is a free one."""
        limit = self._limit()
        return limit is None or self.held < limit

    def began(self) -> Iterator[float]:
        """When each was taken, the oldest first."""
        return (place.began for place in self._held)

    def ticket(self) -> int:
        """The next number in the queue of those who have no place."""
        return next(self._tickets)

    def enter(self) -> CapacityShare:
        """The share of a request whose turn it is; it must be left again."""
        place = self._take()
        return CapacityShare({place}, place)

    async def turn(self, share: CapacityShare) -> CapacityUnit:
        """A place for the next sequence of a request, once it is its turn; it must be given back."""
        share.sequences += 1
        if (place := share.idle) is not None:
            share.idle = None
            # Its time begins anew.
            self._drop(share, place)
            return self._lend(share)
        turn: asyncio.Future[CapacityUnit] = asyncio.get_running_loop().create_future()
        share.waiting.append(turn)
        self._waiting[share] = None
        self._freed()
        try:
            return await turn
        except BaseException:
            # Its turn may have come while it was on its way out.
            if turn.done() and not turn.cancelled():
                self.give(share, turn.result())
            raise

    def give(self, share: CapacityShare, place: CapacityUnit) -> None:
        """A sequence is over; its place goes to the next one."""
        # What a request has left behind at its end was taken then.
        if place not in share.places:
            return
        is_wanting = share.next() is not None
        if share.held == 1 and not is_wanting and not share.is_over:
            share.idle = place
            return
        self._drop(share, place)
        if is_wanting and not share.held:
            share.ticket = self.ticket()
            self._wait_last(share)
        self._freed()

    def leave(self, share: CapacityShare) -> None:
        """A request is over."""
        share.is_over, share.idle = True, None
        self._waiting.pop(share, None)
        for turn in share.waiting:
            turn.cancel()
        for place in tuple(share.places):
            self._drop(share, place)
        self._freed()

    def poorest(self) -> CapacityShare | None:
        """The request that may have a further place, and has the fewest."""
        for share in [share for share in self._waiting if share.next() is None]:
            del self._waiting[share]
        limit = self._limit()
        may = (share for share in self._waiting if limit is None or share.held < -(-limit // _PART))
        return min(may, key=lambda share: share.held, default=None)

    def serve(self, share: CapacityShare) -> None:
        """Have the next sequence of this request begin, which waits."""
        turn = share.next()
        if turn is None:
            raise AssertionError("nothing of this request waits; this is a bug")
        turn.set_result(self._lend(share))
        self._wait_last(share)

    def _wait_last(self, share: CapacityShare) -> None:
        self._waiting.pop(share, None)
        self._waiting[share] = None

    def _lend(self, share: CapacityShare) -> CapacityUnit:
        place = self._take()
        share.places.add(place)
        return place

    def _take(self) -> CapacityUnit:
        place = CapacityUnit(self._clock())
        self._held[place] = None
        return place

    def _drop(self, share: CapacityShare, place: CapacityUnit) -> None:
        del self._held[place]
        share.places.remove(place)
