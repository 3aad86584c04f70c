"""The queue of one model: so many sequences at once, so many requests waiting, all others refused at once.

A sequence is one text of a batch, or one choice of one prompt; each takes one unit of the model's capacity. A request
waits in the queue for its first unit. From then on it has one, and further ones while more of its sequences are
computed. A free unit goes to the request that has the fewest, which is max-min fairness (Bertsekas and Gallager, Data
Networks, 6.5.2), so a request with thousands of sequences takes turns with the others.

Background requests, such as those of batches, get units that interactive ones leave: only while none of those waits,
and all of them together at most half.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count

import msgspec

from appliance.config.limits import LimitsConfig, SloConfig
from appliance.core.concurrency import off_loop
from appliance.core.errors import RateLimitedError, RequestError, RequestTimeoutError
from appliance.core.json_limits import has_more_containers
from appliance.core.request_context import current_context
from appliance.core.shared_traffic import ModelTraffic
from appliance.limits.batch_lines import BatchLines
from appliance.limits.estimators import TokenEstimator, WaitEstimator
from appliance.limits.rate_limiter import note_refusal, refusal
from appliance.limits.timeouts import Timeouts

# Requests differ, so an estimate may use up no more than this part of the promised time.
_SLO_SHARE = 0.75

# One request may have one unit of so many, rounded up, so that there is room for others.
_MAX_SHARE_DIVISOR = 2

# Units of all background requests of a model that has no limit.
_BACKGROUND_UNITS = 8


class Sequence(msgspec.Struct, eq=False):
    """A unit of capacity, taken at the moment `started`, and the sequence that is computed in it."""

    slots: SequenceSlots
    started: float
    is_ended: bool = False

    def first_token(self) -> None:
        """Note that the first token of the sequence is there."""
        if self.slots.is_background:
            self.slots.queue.batch_lines.note_began()
        elif self.slots.sequences > 1:
            self.slots.queue.learn_first_token(self.started)

    def end(self, *, is_success: bool) -> None:
        """Return the unit of capacity; only the first call counts."""
        if not self.is_ended:
            self.is_ended = True
            self.slots.queue.end(self, is_success=is_success)


class SequenceSlots(msgspec.Struct, eq=False):
    """The capacity of one running request; `size` is that of its body in bytes."""

    queue: RequestQueue
    size: int
    started: float
    is_background: bool = False
    units: set[Sequence] = msgspec.field(default_factory=set)
    idle: Sequence | None = None
    """The unit in which nothing is computed now; a request keeps its last unit to its end."""
    sequences: int = 0
    """All sequences that have requested a unit."""
    waiting: deque[asyncio.Future[Sequence]] = msgspec.field(default_factory=deque)
    ticket: int = 0
    """Its position among the requests that have no unit."""

    @property
    def limits(self) -> LimitsConfig:
        """The limits of the model."""
        return self.queue.limits

    def first_waiting(self) -> asyncio.Future[Sequence] | None:
        """Return the first of its sequences that still waits."""
        while self.waiting and self.waiting[0].done():
            self.waiting.popleft()
        return self.waiting[0] if self.waiting else None

    def first_token(self) -> None:
        """Note that the first token is there."""
        # With several sequences, each reports its own: the time for all of them depends on their number.
        if self.is_background:
            self.queue.batch_lines.note_began()
        elif self.sequences < 2:
            self.queue.learn_first_token(self.started)

    @asynccontextmanager
    async def sequence(self) -> AsyncGenerator[Sequence]:
        """Wait for a unit of capacity, and hold it while one sequence is computed in the block."""
        sequence = await self.queue.acquire(self)
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
class _Waiter:
    slots: asyncio.Future[SequenceSlots]
    size: int
    tokens: int
    ticket: int


@dataclass(slots=True)
class RequestQueue:
    """The queue of a model; `refused` counts refusals by their reason.

    `engine_concurrent` is the number of sequences that the engine computes at once, None if it does not say.
    """

    limits: LimitsConfig
    slo: SloConfig
    clock: Callable[[], float] = time.monotonic
    engine_concurrent: int | None = None
    shared_traffic: ModelTraffic | None = None
    """The model's requests in other workers, for which batches pause too; None if there are none."""
    refused: Counter[str] = field(default_factory=Counter)
    batch_lines: BatchLines = field(init=False)
    """The lines of batches that wait for a pause, or run in one."""
    _token_estimator: TokenEstimator = field(default_factory=TokenEstimator)
    _wait_estimator: WaitEstimator = field(default_factory=WaitEstimator)
    _running: set[SequenceSlots] = field(default_factory=set)
    # The oldest first: a dict keeps the order and removes any of them at once.
    _units: dict[Sequence, None] = field(default_factory=dict)
    _waiters: dict[_Waiter, None] = field(default_factory=dict)
    _background_waiters: dict[_Waiter, None] = field(default_factory=dict)
    _background_units: int = 0
    # Running requests whose sequences wait. Of those with equally many units the first is served, and becomes the last.
    _sharing: dict[SequenceSlots, None] = field(default_factory=dict)
    _tickets: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        """Let lines of batches see the other requests."""
        self.batch_lines = BatchLines(self._interactive_load, self.clock, self.shared_traffic)

    @property
    def running(self) -> int:
        """Units of capacity that running requests hold."""
        return len(self._units)

    @property
    def running_requests(self) -> int:
        """Requests whose turn has come."""
        return len(self._running)

    @property
    def queued(self) -> int:
        """Interactive requests that wait for their turn."""
        return len(self._waiters)

    @property
    def background_limit(self) -> int:
        """Most units that all background requests hold together."""
        limit = self.concurrent
        return _BACKGROUND_UNITS if limit is None else max(1, limit // _MAX_SHARE_DIVISOR)

    @property
    def queued_tokens(self) -> int:
        """Estimated prompt tokens of the requests that wait."""
        return sum(waiter.tokens for waiter in self._waiters)

    @property
    def concurrent(self) -> int | None:
        """Most sequences that run at once; None is no limit."""
        return self.limits.concurrent or self.engine_concurrent

    def apply(self, limits: LimitsConfig, slo: SloConfig) -> None:
        """Use other settings from now on; requests that wait may start now."""
        self.limits, self.slo = limits, slo
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
        self.batch_lines.arrive()
        self._require_slo(timeouts.model)
        if self._has_room:
            return self._start(size)
        self._require_queue_room(size, timeouts.model)
        try:
            async with self._waiting(size, self._waiters) as turn:
                return await timeouts.before_first(self._wait_for_turn(turn, timeouts.model))
        except RequestTimeoutError:
            self.refused["deadline"] += 1
            note_refusal("deadline")
            raise

    def _interactive_load(self) -> tuple[int, int]:
        """Return the units that interactive requests hold, and how many of those wait."""
        return self.running - self._background_units, len(self._waiters)

    async def enter_background(self, size: int) -> SequenceSlots:
        """Wait, however long it takes, until a background request may use a unit; it must leave again."""
        async with self._waiting(size, self._background_waiters) as turn:
            self._serve_waiting()
            return await turn

    def leave(self, slots: SequenceSlots, prompt_tokens: int | None, *, is_success: bool) -> None:
        """End a request; see `SequenceSlots.leave`."""
        if slots not in self._running:
            return
        self._running.remove(slots)
        if self.shared_traffic is not None and not slots.is_background:
            self.shared_traffic.add_running(-1)
        if is_success and slots.sequences < 2:
            self._wait_estimator.learn_duration(self.clock() - slots.started)
        if prompt_tokens is not None:
            self._token_estimator.learn(slots.size, prompt_tokens)
        slots.idle = None
        self._sharing.pop(slots, None)
        for turn in slots.waiting:
            turn.cancel()
        for unit in tuple(slots.units):
            self._drop(unit)
        self._serve_waiting()

    async def acquire(self, slots: SequenceSlots) -> Sequence:
        """Wait for a unit for the next sequence of a request; see `SequenceSlots.sequence`."""
        slots.sequences += 1
        if (idle := slots.idle) is not None:
            slots.idle = None
            # A new unit, because the time of the sequence starts now.
            self._drop(idle)
            return self._take(slots)
        turn: asyncio.Future[Sequence] = asyncio.get_running_loop().create_future()
        slots.waiting.append(turn)
        self._sharing[slots] = None
        self._serve_waiting()
        try:
            return await turn
        except BaseException:
            # The unit may have been given while this task was being cancelled.
            if turn.done() and not turn.cancelled():
                turn.result().end(is_success=False)
            raise

    def end(self, sequence: Sequence, *, is_success: bool) -> None:
        """End a sequence; its unit goes to the next one."""
        slots = sequence.slots
        if is_success and slots.sequences > 1:
            self._wait_estimator.learn_duration(self.clock() - sequence.started)
        # The units of a request that has left are already returned.
        if sequence not in slots.units:
            return
        is_waiting = slots.first_waiting() is not None
        if len(slots.units) == 1 and not is_waiting and slots in self._running:
            slots.idle = sequence
            return
        self._drop(sequence)
        if is_waiting and not slots.units:
            slots.ticket = next(self._tickets)
            self._move_to_end(slots)
        self._serve_waiting()

    def learn_first_token(self, started: float) -> None:
        """Learn the time to first token of what started at this moment."""
        now = self.clock()
        self._wait_estimator.learn_first_token(self.running, now - started, now)

    @asynccontextmanager
    async def _waiting(self, size: int, waiters: dict[_Waiter, None]) -> AsyncGenerator[asyncio.Future[SequenceSlots]]:
        """Have a request among those that wait during the block, which returns the result of the future."""
        turn: asyncio.Future[SequenceSlots] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(turn, size, self.tokens(size), next(self._tickets))
        waiters[waiter] = None
        try:
            yield turn
        except BaseException:
            waiters.pop(waiter, None)
            # Its turn may have come while this task was being cancelled.
            if turn.done() and not turn.cancelled():
                self.leave(turn.result(), None, is_success=False)
            raise

    async def _wait_for_turn(self, turn: asyncio.Future[SequenceSlots], name: str) -> SequenceSlots:
        """Wait for a request's turn; the promised time holds even if the estimate was wrong."""
        promised = self.slo.ttft_seconds
        if promised is None:
            return await turn
        left = promised - self._wait_estimator.first_token_seconds(self.running, self.clock())
        try:
            async with asyncio.timeout(max(0.0, left)) as bound:
                return await turn
        except TimeoutError:
            if not bound.expired():
                raise
        raise self._refusal(name, "late", f"did not get to it in time for its slo.ttft_seconds of {promised:g}")

    @property
    def _is_free(self) -> bool:
        return self.concurrent is None or self.running < self.concurrent

    @property
    def _has_room(self) -> bool:
        # A new request does not overtake those that wait.
        return self._is_free and not self._waiters

    def _start(self, size: int, *, is_background: bool = False) -> SequenceSlots:
        slots = SequenceSlots(self, size, self.clock(), is_background)
        slots.idle = self._take(slots)
        self._running.add(slots)
        if self.shared_traffic is not None and not is_background:
            self.shared_traffic.add_running(1)
        return slots

    def _serve_waiting(self) -> None:
        """Give free units to interactive requests, then to background requests."""
        while self._is_free and (self._waiters or self._background_waiters or self._sharing):
            if self._serve_one(is_background=False):
                continue
            if self._background_units >= self.background_limit or not self._serve_one(is_background=True):
                return

    def _serve_one(self, *, is_background: bool) -> bool:
        """Give a unit to the first request that has none, in the order of arrival, or to the one with the fewest.

        Return whether there was such a request.
        """
        waiters = self._background_waiters if is_background else self._waiters
        waiter, slots = next(iter(waiters), None), self._poorest(is_background=is_background)
        if waiter is not None and (slots is None or slots.units or waiter.ticket < slots.ticket):
            del waiters[waiter]
            # It may have been cancelled in this iteration of the event loop.
            if not waiter.slots.done():
                waiter.slots.set_result(self._start(waiter.size, is_background=is_background))
        elif slots is not None and (turn := slots.first_waiting()) is not None:
            turn.set_result(self._take(slots))
            self._move_to_end(slots)
        else:
            return False
        return True

    def _poorest(self, *, is_background: bool) -> SequenceSlots | None:
        """Return the request with the fewest units among those that may have a further one."""
        for slots in [slots for slots in self._sharing if slots.first_waiting() is None]:
            del self._sharing[slots]
        limit = self.concurrent
        eligible = (
            slots
            for slots in self._sharing
            if slots.is_background is is_background
            and (limit is None or len(slots.units) < -(-limit // _MAX_SHARE_DIVISOR))
        )
        return min(eligible, key=lambda slots: len(slots.units), default=None)

    def _move_to_end(self, slots: SequenceSlots) -> None:
        self._sharing.pop(slots, None)
        self._sharing[slots] = None

    def _take(self, slots: SequenceSlots) -> Sequence:
        unit = Sequence(slots, self.clock())
        self._units[unit] = None
        slots.units.add(unit)
        self._background_units += slots.is_background
        return unit

    def _drop(self, unit: Sequence) -> None:
        del self._units[unit]
        unit.slots.units.remove(unit)
        self._background_units -= unit.slots.is_background

    def _require_slo(self, name: str) -> None:
        promised = self.slo.ttft_seconds
        # Without running requests, a refusal would help no other request.
        if promised is None or not self.running:
            return
        wait = 0.0 if self._has_room else self._wait_seconds()
        # While nothing is known, no request that would have to wait is accepted.
        if wait is None or (
            wait + self._wait_estimator.first_token_seconds(self.running + 1, self.clock()) > promised * _SLO_SHARE
        ):
            raise self._refusal(name, "slo", f"could not begin to answer within its slo.ttft_seconds of {promised:g}")

    def _require_queue_room(self, size: int, name: str) -> None:
        if self.limits.queued == 0:
            raise self._refusal(name, "concurrent", f"has {self.running_requests} requests running, as many as it may")
        if self.queued >= self.limits.queued:
            raise self._refusal(name, "queue", f"has {self.queued} requests waiting, as many as it may")
        tokens, max_tokens = self.queued_tokens, self.limits.queued_tokens
        if max_tokens is not None and tokens + self.tokens(size) > max_tokens:
            raise self._refusal(name, "tokens", f"has about {tokens} prompt tokens waiting, of at most {max_tokens}")

    def _wait_seconds(self) -> float | None:
        if self.concurrent is None:
            return 0.0
        started = (unit.started for unit in self._units)
        return self._wait_estimator.wait_seconds(self.queued, self.concurrent, started, self.clock())

    def _refusal(self, name: str, reason: str, description: str) -> RateLimitedError:
        self.refused[reason] += 1
        message = f"The model {name!r} {description}; try again later"
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


async def require_decodable(body: bytes) -> None:
    """Raise RequestError if the body has more objects and lists than the current request's model takes."""
    slots = current_slots()
    if slots is not None and await off_loop(len(body), has_more_containers, body, most := slots.limits.json_containers):
        raise RequestError(
            f"The body has more than {most} objects and lists, the most that are taken in one request "
            "(limits.json_containers)",
            code="invalid_json",
        )


def require_size(inputs: int, choices: int, *, field: str) -> None:
    """Return if the current request, with so many texts in `field` and choices for each, is not too large.

    Raises:
        RequestError: it is more than the model takes in one request.
    """
    slots = _slots.get()
    if slots is not None:
        require_within(slots.limits, inputs, choices, field=field)


def require_within(limits: LimitsConfig, inputs: int, choices: int, *, field: str) -> None:
    """Return if a request of this size is within the limits; raises as `require_size` does."""
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
