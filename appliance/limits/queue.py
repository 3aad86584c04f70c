"""The way into one model: so many at once, so many in a queue before it, everybody else refused at once.

What is counted is sequences: each text of a batch, each choice of each prompt. A request waits for its first place in
the queue, and for further ones among the requests under way (`Capacity`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from appliance.config.limits import LimitsConfig, SloConfig
from appliance.core.errors import RateLimitedError, RequestTimeoutError
from appliance.limits.capacity import Capacity, CapacityUnit
from appliance.limits.rejection import note, refusal
from appliance.limits.slots import Sequence, SequenceSlots
from appliance.limits.timeouts import Timeouts
from appliance.limits.token_estimator import TokenEstimator
from appliance.limits.wait_estimator import WaitEstimator

# Requests differ, so a forecast may use up no more than this share of what is promised.
_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """What a gate holds to."""

    limits: LimitsConfig
    slo: SloConfig

    def share(self, workers: int) -> QueueSettings:
        """What the gate of one of so many workers holds to."""
        return QueueSettings(self.limits.share(workers), self.slo)


@dataclass(slots=True, eq=False)
class _Waiter:
    slot: asyncio.Future[SequenceSlots]
    size: int
    tokens: int
    ticket: int


@dataclass(slots=True)
class RequestQueue:
    """Lets requests into the model of this name, and counts the others by the reason in `refused`.

    `engine_concurrent` is how many the engine computes at once, None where it does not say.
    """

    model: str
    settings: QueueSettings
    clock: Callable[[], float] = time.monotonic
    engine_concurrent: int | None = None
    refused: Counter[str] = field(default_factory=Counter)
    _ratio: TokenEstimator = field(default_factory=TokenEstimator)
    _forecast: WaitEstimator = field(default_factory=WaitEstimator)
    _slots: set[SequenceSlots] = field(default_factory=set)
    # The oldest first: a dict keeps the order, and lets go of any of them at once.
    _waiters: dict[_Waiter, None] = field(default_factory=dict)
    _places: Capacity = field(init=False)

    def __post_init__(self) -> None:
        self._places = Capacity(self.clock, lambda: self.concurrent, self._let_in)

    @property
    def limits(self) -> LimitsConfig:
        """What the model takes on."""
        return self.settings.limits

    @property
    def running(self) -> int:
        """Places that requests under way hold."""
        return self._places.held

    @property
    def queued(self) -> int:
        """Requests that wait for their turn."""
        return len(self._waiters)

    @property
    def queued_tokens(self) -> int:
        """Their prompt tokens, as estimated."""
        return sum(waiter.tokens for waiter in self._waiters)

    @property
    def concurrent(self) -> int | None:
        """Most sequences under way at once; None is no limit."""
        return self.settings.limits.concurrent or self.engine_concurrent

    def apply(self, settings: QueueSettings) -> None:
        """Hold to other settings from now on; who waits already may have a place now."""
        self.settings = settings
        self._let_in()

    def tokens(self, size: int) -> int:
        """Prompt tokens that a body of this many bytes likely has."""
        return self._ratio.tokens(size)

    async def enter(self, size: int, deadlines: Timeouts) -> SequenceSlots:
        """A place for a request with a body of this many bytes, once it is its turn; it must be left again.

        Raises:
            RateLimitedError: there is none, and none soon enough.
            RequestTimeoutError: its turn came too late.
        """
        self._require_promise()
        if self._has_place():
            return self._take(size)
        self._require_room(size)
        waiter = _Waiter(asyncio.get_running_loop().create_future(), size, self.tokens(size), self._places.ticket())
        self._waiters[waiter] = None
        try:
            return await deadlines.before_first(self._turn(waiter))
        except BaseException as error:
            self._waiters.pop(waiter, None)
            # Its turn may have come while it was on its way out.
            if waiter.slot.done() and not waiter.slot.cancelled():
                self.leave(waiter.slot.result(), None, is_answered=False)
            if isinstance(error, RequestTimeoutError):
                self.refused["deadline"] += 1
                note("deadline")
            raise

    async def turn(self, slot: SequenceSlots) -> CapacityUnit:
        """A place for the next sequence of a request, once it is its turn."""
        return await self._places.turn(slot.share)

    def end(self, sequence: Sequence, *, is_answered: bool) -> None:
        """A sequence is over; its place goes to the next one."""
        share = sequence.slot.share
        if is_answered and share.sequences > 1:
            self._forecast.learn_held(self.clock() - sequence.place.began)
        self._places.give(share, sequence.place)

    def learn_first(self, began: float) -> None:
        """The first token is there of what began at this moment."""
        now = self.clock()
        self._forecast.learn_first(self.running, now - began, now)

    def leave(self, slot: SequenceSlots, prompt_tokens: int | None, *, is_answered: bool) -> None:
        """A request is over, or was never begun; its place goes to the next one."""
        if slot not in self._slots:
            return
        self._slots.remove(slot)
        if is_answered and slot.share.sequences < 2:
            self._forecast.learn_held(self.clock() - slot.began)
        if prompt_tokens is not None:
            self._ratio.learn(slot.size, prompt_tokens)
        self._places.leave(slot.share)

    async def _turn(self, waiter: _Waiter) -> SequenceSlots:
        """Its slot; what is promised is kept even where the forecast was wrong."""
        promised = self.settings.slo.ttft_seconds
        if promised is None:
            return await waiter.slot
        left = promised - self._forecast.first(self.running, self.clock())
        try:
            async with asyncio.timeout(max(0.0, left)) as bound:
                return await waiter.slot
        except TimeoutError:
            if not bound.expired():
                raise
        raise self._refusal("late", f"did not get to it in time for its slo.ttft_seconds of {promised:g}")

    def _has_place(self) -> bool:
        # Who comes now does not overtake who waits.
        return self._places.is_open and not self._waiters

    def _take(self, size: int) -> SequenceSlots:
        slot = SequenceSlots(self, size, self.clock(), self._places.enter())
        self._slots.add(slot)
        return slot

    def _let_in(self) -> None:
        """
        Hand free places out: to those who have none in the order in which they came, then to those who have fewest.
        """
        while self._places.is_open:
            waiter, share = next(iter(self._waiters), None), self._places.poorest()
            if waiter is not None and (share is None or share.held or waiter.ticket < share.ticket):
                del self._waiters[waiter]
                # It may have left in this very turn of the loop.
                if not waiter.slot.done():
                    waiter.slot.set_result(self._take(waiter.size))
            elif share is not None:
                self._places.serve(share)
            else:
                return

    def _require_promise(self) -> None:
        promised = self.settings.slo.ttft_seconds
        # Nobody to wait for: to refuse would help nobody.
        if promised is None or not self.running:
            return
        wait = 0.0 if self._has_place() else self._wait()
        # What is not known yet is not promised to those who would have to wait.
        if wait is None or wait + self._forecast.first(self.running + 1, self.clock()) > promised * _SHARE:
            raise self._refusal("slo", f"could not begin to answer within its slo.ttft_seconds of {promised:g}")

    def _require_room(self, size: int) -> None:
        limits = self.settings.limits
        if limits.queued == 0:
            raise self._refusal("concurrent", f"has {len(self._slots)} requests under way, as many as it may")
        if self.queued >= limits.queued:
            raise self._refusal("queue", f"has {self.queued} requests waiting, as many as may")
        most = limits.queued_tokens
        if most is not None and self.queued_tokens + self.tokens(size) > most:
            raise self._refusal("tokens", f"has about {self.queued_tokens} prompt tokens waiting, of {most} that may")

    def _wait(self) -> float | None:
        if self.concurrent is None:
            return 0.0
        return self._forecast.wait(self.queued, self.concurrent, self._places.began(), self.clock())

    def _refusal(self, reason: str, why: str) -> RateLimitedError:
        self.refused[reason] += 1
        return refusal(reason, f"The model {self.model!r} {why}; try again later", self._wait(), code="overloaded")
