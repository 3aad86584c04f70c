"""The queue of one model: so many sequences at once, so many requests waiting, all others refused at once.

A sequence is one text of a batch, or one choice of one prompt. A request waits for its first unit of capacity in the
queue, and for further ones among the running requests (`Capacity`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from appliance.config.limits import LimitsConfig, SloConfig
from appliance.core.errors import RateLimitedError, RequestError, RequestTimeoutError
from appliance.core.request_context import current_context
from appliance.limits.capacity import Capacity, CapacityShare, CapacityUnit
from appliance.limits.estimators import TokenEstimator, WaitEstimator
from appliance.limits.rate_limiter import note_refusal, refusal
from appliance.limits.timeouts import Timeouts

# Requests differ, so an estimate may use up no more than this part of the promised time.
_SLO_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """The limits of a queue, and the promised time to first token."""

    limits: LimitsConfig
    slo: SloConfig

    def share(self, workers: int) -> QueueSettings:
        """Return the settings of one of so many workers."""
        return QueueSettings(self.limits.share(workers), self.slo)


@dataclass(slots=True, eq=False)
class SequenceSlots:
    """The capacity of one running request; `size` is that of its body in bytes."""

    queue: RequestQueue
    size: int
    started: float
    share: CapacityShare

    @property
    def limits(self) -> LimitsConfig:
        """The limits of the model."""
        return self.queue.settings.limits

    def first_token(self) -> None:
        """Note that the first token is there."""
        # With several sequences, each reports its own: the time for all of them depends on their number.
        if self.share.sequences < 2:
            self.queue.learn_first_token(self.started)

    @asynccontextmanager
    async def sequence(self) -> AsyncGenerator[Sequence]:
        """Wait for a unit of capacity, and hold it while one sequence is computed in the block."""
        sequence = Sequence(self, await self.queue.capacity.acquire(self.share))
        try:
            yield sequence
        finally:
            sequence.end(is_success=False)

    def leave(self, prompt_tokens: int | None, *, is_success: bool) -> None:
        """End the request; `prompt_tokens` is None if they were not counted.

        The duration of a request without success is not used for estimates.
        """
        self.queue.leave(self, prompt_tokens, is_success=is_success)


@dataclass(slots=True, eq=False)
class Sequence:
    """One sequence that is computed."""

    slots: SequenceSlots
    unit: CapacityUnit
    is_ended: bool = False

    def first_token(self) -> None:
        """Note that the first token of the sequence is there."""
        if self.slots.share.sequences > 1:
            self.slots.queue.learn_first_token(self.unit.started)

    def end(self, *, is_success: bool) -> None:
        """Return the unit of capacity; only the first call counts."""
        if not self.is_ended:
            self.is_ended = True
            self.slots.queue.end(self, is_success=is_success)


@dataclass(slots=True, eq=False)
class _Waiter:
    slots: asyncio.Future[SequenceSlots]
    size: int
    tokens: int
    ticket: int


@dataclass(slots=True)
class RequestQueue:
    """The queue of the model of this name; `refused` counts refusals by their reason.

    `engine_concurrent` is the number of sequences that the engine computes at once, None if it does not say.
    """

    model: str
    settings: QueueSettings
    clock: Callable[[], float] = time.monotonic
    engine_concurrent: int | None = None
    refused: Counter[str] = field(default_factory=Counter)
    capacity: Capacity = field(init=False)
    _token_estimator: TokenEstimator = field(default_factory=TokenEstimator)
    _wait_estimator: WaitEstimator = field(default_factory=WaitEstimator)
    _running: set[SequenceSlots] = field(default_factory=set)
    # The oldest first: a dict keeps the order and removes any of them at once.
    _waiters: dict[_Waiter, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.capacity = Capacity(self.clock, lambda: self.concurrent, self._serve_waiting)

    @property
    def running(self) -> int:
        """Units of capacity that running requests hold."""
        return self.capacity.used

    @property
    def queued(self) -> int:
        """Requests that wait for their turn."""
        return len(self._waiters)

    @property
    def queued_tokens(self) -> int:
        """Estimated prompt tokens of the requests that wait."""
        return sum(waiter.tokens for waiter in self._waiters)

    @property
    def concurrent(self) -> int | None:
        """Most sequences that run at once; None is no limit."""
        return self.settings.limits.concurrent or self.engine_concurrent

    def apply(self, settings: QueueSettings) -> None:
        """Use other settings from now on; requests that wait may start now."""
        self.settings = settings
        self._serve_waiting()

    def tokens(self, size: int) -> int:
        """Return the estimated prompt tokens of a body of this many bytes."""
        return self._token_estimator.tokens(size)

    async def enter(self, size: int, timeouts: Timeouts) -> SequenceSlots:
        """Wait for the turn of a request with a body of this many bytes; it must leave again.

        Raises:
            RateLimitedError: there is no capacity, and none soon enough.
            RequestTimeoutError: its turn came too late.
        """
        self._require_slo()
        if self._has_room():
            return self._start(size)
        self._require_queue_room(size)
        waiter = _Waiter(
            asyncio.get_running_loop().create_future(), size, self.tokens(size), self.capacity.next_ticket()
        )
        self._waiters[waiter] = None
        try:
            return await timeouts.before_first(self._turn(waiter))
        except BaseException as error:
            self._waiters.pop(waiter, None)
            # Its turn may have come while this task was being cancelled.
            if waiter.slots.done() and not waiter.slots.cancelled():
                self.leave(waiter.slots.result(), None, is_success=False)
            if isinstance(error, RequestTimeoutError):
                self.refused["deadline"] += 1
                note_refusal("deadline")
            raise

    def end(self, sequence: Sequence, *, is_success: bool) -> None:
        """End a sequence; its unit goes to the next one."""
        share = sequence.slots.share
        if is_success and share.sequences > 1:
            self._wait_estimator.learn_duration(self.clock() - sequence.unit.started)
        self.capacity.release(share, sequence.unit)

    def learn_first_token(self, started: float) -> None:
        """Learn the time to first token of what started at this moment."""
        now = self.clock()
        self._wait_estimator.learn_first_token(self.running, now - started, now)

    def leave(self, slots: SequenceSlots, prompt_tokens: int | None, *, is_success: bool) -> None:
        """End a request; see `SequenceSlots.leave`."""
        if slots not in self._running:
            return
        self._running.remove(slots)
        if is_success and slots.share.sequences < 2:
            self._wait_estimator.learn_duration(self.clock() - slots.started)
        if prompt_tokens is not None:
            self._token_estimator.learn(slots.size, prompt_tokens)
        self.capacity.close_share(slots.share)

    async def _turn(self, waiter: _Waiter) -> SequenceSlots:
        """Wait for the request's turn; the promised time holds even if the estimate was wrong."""
        promised = self.settings.slo.ttft_seconds
        if promised is None:
            return await waiter.slots
        left = promised - self._wait_estimator.first_token_seconds(self.running, self.clock())
        try:
            async with asyncio.timeout(max(0.0, left)) as bound:
                return await waiter.slots
        except TimeoutError:
            if not bound.expired():
                raise
        raise self._refusal("late", f"did not get to it in time for its slo.ttft_seconds of {promised:g}")

    def _has_room(self) -> bool:
        # A new request does not overtake those that wait.
        return self.capacity.is_free and not self._waiters

    def _start(self, size: int) -> SequenceSlots:
        slots = SequenceSlots(self, size, self.clock(), self.capacity.open_share())
        self._running.add(slots)
        return slots

    def _serve_waiting(self) -> None:
        """Give free units to the requests that have none, in the order of their arrival, then to those with fewest."""
        while self.capacity.is_free:
            waiter, share = next(iter(self._waiters), None), self.capacity.poorest()
            if waiter is not None and (share is None or share.units or waiter.ticket < share.ticket):
                del self._waiters[waiter]
                # It may have been cancelled in this iteration of the event loop.
                if not waiter.slots.done():
                    waiter.slots.set_result(self._start(waiter.size))
            elif share is not None:
                self.capacity.serve(share)
            else:
                return

    def _require_slo(self) -> None:
        promised = self.settings.slo.ttft_seconds
        # Without running requests, a refusal would help no other request.
        if promised is None or not self.running:
            return
        wait = 0.0 if self._has_room() else self._wait_seconds()
        # While nothing is known, no request that would have to wait is accepted.
        if wait is None or (
            wait + self._wait_estimator.first_token_seconds(self.running + 1, self.clock()) > promised * _SLO_SHARE
        ):
            raise self._refusal("slo", f"could not begin to answer within its slo.ttft_seconds of {promised:g}")

    def _require_queue_room(self, size: int) -> None:
        limits = self.settings.limits
        if limits.queued == 0:
            raise self._refusal("concurrent", f"has {len(self._running)} requests running, as many as it may")
        if self.queued >= limits.queued:
            raise self._refusal("queue", f"has {self.queued} requests waiting, as many as it may")
        max_tokens = limits.queued_tokens
        if max_tokens is not None and self.queued_tokens + self.tokens(size) > max_tokens:
            raise self._refusal(
                "tokens", f"has about {self.queued_tokens} prompt tokens waiting, of at most {max_tokens}"
            )

    def _wait_seconds(self) -> float | None:
        if self.concurrent is None:
            return 0.0
        return self._wait_estimator.wait_seconds(
            self.queued, self.concurrent, self.capacity.start_times(), self.clock()
        )

    def _refusal(self, reason: str, description: str) -> RateLimitedError:
        self.refused[reason] += 1
        message = f"The model {self.model!r} {description}; try again later"
        return refusal(reason, message, self._wait_seconds(), code="overloaded")


_slots: ContextVar[SequenceSlots | None] = ContextVar("slots", default=None)


def current_slots() -> SequenceSlots | None:
    """Return the slots of the request that this task works for; None if it works for none."""
    return _slots.get()


@contextmanager
def use_slots(slots: SequenceSlots) -> Iterator[None]:
    """Have the block, and tasks that are started in it, work for the request with these slots."""
    token = _slots.set(slots)
    try:
        yield
    finally:
        _slots.reset(token)


@asynccontextmanager
async def run_sequence() -> AsyncGenerator[Sequence | None]:
    """Compute one sequence of the current request in the block, once it is its turn; outside a request, at once."""
    slots = _slots.get()
    if slots is None:
        yield None
        return
    if (context := current_context()) is not None:
        context.sequences += 1
    async with slots.sequence() as sequence:
        yield sequence


def require_size(inputs: int, choices: int, *, field: str) -> None:
    """Return if the current request, with so many texts in `field` and choices for each, is not too large.

    Raises:
        RequestError: it is more than the model takes in one request.
    """
    slots = _slots.get()
    if slots is not None:
        require_within(slots.limits, inputs, choices, field=field)


def require_within(limits: LimitsConfig, inputs: int, choices: int, *, field: str) -> None:
    """Return if a request of this size is within the limits.

    Raises:
        RequestError: it is more than they allow in one request.
    """
    if inputs > (most := limits.inputs_per_request):
        raise RequestError(
            f"{field} has {inputs} elements; at most {most} are taken in one request (limits.inputs_per_request), "
            "so send several requests",
            param=field,
        )
    if choices > (most := limits.choices_per_request):
        raise RequestError(
            f"n is {choices}; at most {most} choices are made in one request (limits.choices_per_request)", param="n"
        )
