"""
The way into one model: so many at once, so many in a queue before it, everybody else refused at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from appliance.admission.deadlines import Deadlines
from appliance.admission.forecast import Forecast
from appliance.admission.ratio import Ratio
from appliance.admission.refusal import note, refusal
from appliance.admission.section import LimitsSection, SloSection
from appliance.errors import DeadlineError, LimitedError

# Requests differ, so a forecast may use up no more than this share of what is promised.
_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Settings:
    """
    What a gate holds to.
    """

    limits: LimitsSection
    slo: SloSection

    def share(self, workers: int) -> Settings:
        """
        What the gate of one of so many workers holds to.
        """
        return Settings(self.limits.share(workers), self.slo)


@dataclass(slots=True, eq=False)
class Slot:
    """
    The place of one request under way; `size` is that of its body, in bytes.
    """

    gate: Gate
    size: int
    began: float

    def first(self) -> None:
        """
        Its first token is there.
        """
        self.gate.learn_first(self)

    def leave(self, prompt_tokens: int | None, *, is_answered: bool) -> None:
        """
        Give the place to the next one; how many tokens the prompt had is None where nobody counted them.

        What was not answered says nothing about how long answers take.
        """
        self.gate.leave(self, prompt_tokens, is_answered=is_answered)


@dataclass(slots=True, eq=False)
class _Waiter:
    slot: asyncio.Future[Slot]
    size: int
    tokens: int


@dataclass(slots=True)
class Gate:
    """
    Lets requests into the model of this name, and counts the others by the reason in `refused`.

    `engine_concurrent` is how many the engine computes at once, None where it does not say.
    """

    model: str
    settings: Settings
    clock: Callable[[], float] = time.monotonic
    engine_concurrent: int | None = None
    refused: Counter[str] = field(default_factory=Counter)
    _ratio: Ratio = field(default_factory=Ratio)
    _forecast: Forecast = field(default_factory=Forecast)
    # The oldest first: a dict keeps the order, and lets go of any of them at once.
    _slots: dict[Slot, None] = field(default_factory=dict)
    _waiters: dict[_Waiter, None] = field(default_factory=dict)

    @property
    def running(self) -> int:
        """
        Requests under way.
        """
        return len(self._slots)

    @property
    def queued(self) -> int:
        """
        Requests that wait for their turn.
        """
        return len(self._waiters)

    @property
    def queued_tokens(self) -> int:
        """
        Their prompt tokens, as estimated.
        """
        return sum(waiter.tokens for waiter in self._waiters)

    @property
    def concurrent(self) -> int | None:
        """
        Most requests under way at once; None is no limit.
        """
        return self.settings.limits.concurrent or self.engine_concurrent

    def apply(self, settings: Settings) -> None:
        """
        Hold to other settings from now on; who waits already may have a place now.
        """
        self.settings = settings
        self._let_in()

    def tokens(self, size: int) -> int:
        """
        Prompt tokens that a body of this many bytes likely has.
        """
        return self._ratio.tokens(size)

    async def enter(self, size: int, deadlines: Deadlines) -> Slot:
        """
        A place for a request with a body of this many bytes, once it is its turn; it must be left again.

        Raises:
            LimitedError: there is none, and none soon enough.
            DeadlineError: its turn came too late.
        """
        self._require_promise()
        if self._has_place():
            return self._take(size)
        self._require_room(size)
        waiter = _Waiter(asyncio.get_running_loop().create_future(), size, self.tokens(size))
        self._waiters[waiter] = None
        try:
            return await deadlines.before_first(self._turn(waiter))
        except BaseException as error:
            self._waiters.pop(waiter, None)
            # Its turn may have come while it was on its way out.
            if waiter.slot.done() and not waiter.slot.cancelled():
                self.leave(waiter.slot.result(), None, is_answered=False)
            if isinstance(error, DeadlineError):
                self.refused["deadline"] += 1
                note("deadline")
            raise

    def learn_first(self, slot: Slot) -> None:
        """
        The first token of a request under way is there.
        """
        now = self.clock()
        self._forecast.learn_first(self.running, now - slot.began, now)

    def leave(self, slot: Slot, prompt_tokens: int | None, *, is_answered: bool) -> None:
        """
        A request is over, or was never begun; its place goes to the next one.
        """
        if slot not in self._slots:
            return
        del self._slots[slot]
        if is_answered:
            self._forecast.learn_held(self.clock() - slot.began)
        if prompt_tokens is not None:
            self._ratio.learn(slot.size, prompt_tokens)
        self._let_in()

    async def _turn(self, waiter: _Waiter) -> Slot:
        """
        Its slot; what is promised is kept even where the forecast was wrong.
        """
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
        return self._is_open() and not self._waiters

    def _is_open(self) -> bool:
        return self.concurrent is None or self.running < self.concurrent

    def _take(self, size: int) -> Slot:
        slot = Slot(self, size, self.clock())
        self._slots[slot] = None
        return slot

    def _let_in(self) -> None:
        while self._waiters and self._is_open():
            waiter = next(iter(self._waiters))
            del self._waiters[waiter]
            # It may have left in this very turn of the loop.
            if not waiter.slot.done():
                waiter.slot.set_result(self._take(waiter.size))

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
            raise self._refusal("concurrent", f"has {self.running} requests under way, as many as it may")
        if self.queued >= limits.queued:
            raise self._refusal("queue", f"has {self.queued} requests waiting, as many as may")
        most = limits.queued_tokens
        if most is not None and self.queued_tokens + self.tokens(size) > most:
            raise self._refusal("tokens", f"has about {self.queued_tokens} prompt tokens waiting, of {most} that may")

    def _wait(self) -> float | None:
        if self.concurrent is None:
            return 0.0
        return self._forecast.wait(self.queued, self.concurrent, (slot.began for slot in self._slots), self.clock())

    def _refusal(self, reason: str, why: str) -> LimitedError:
        self.refused[reason] += 1
        return refusal(reason, f"The model {self.model!r} {why}; try again later", self._wait(), code="overloaded")
