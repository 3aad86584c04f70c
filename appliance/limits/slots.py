"""What a request under way holds, and the sequences that are computed for it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from appliance.config.limits import LimitsConfig
from appliance.core.errors import RequestError
from appliance.core.request_context import current_context
from appliance.limits.capacity import CapacityShare, CapacityUnit


class SlotLender(Protocol):
    """Who lends the places and learns from how long they are held."""

    @property
    def limits(self) -> LimitsConfig:
        """What the model takes on."""

    async def turn(self, slot: SequenceSlots) -> CapacityUnit:
        """A place for the next sequence of a request, once it is its turn."""

    def learn_first(self, began: float) -> None:
        """The first token is there of what began at this moment."""

    def end(self, sequence: Sequence, *, is_answered: bool) -> None:
        """A sequence is over; its place goes to the next one."""

    def leave(self, slot: SequenceSlots, prompt_tokens: int | None, *, is_answered: bool) -> None:
        """A request is over, or was never begun; its place goes to the next one."""


@dataclass(slots=True, eq=False)
class SequenceSlots:
    """What one request under way holds; `size` is that of its body, in bytes."""

    gate: SlotLender
    size: int
    began: float
    share: CapacityShare

    @property
    def limits(self) -> LimitsConfig:
        """What its model takes on."""
        return self.gate.limits

    def first(self) -> None:
        """Its first token is there."""
        # Of several sequences each speaks for itself: how long all of them take is their number's doing.
        if self.share.sequences < 2:
            self.gate.learn_first(self.began)

    @asynccontextmanager
    async def sequence(self) -> AsyncGenerator[Sequence]:
        """Compute one sequence of the request in the block, once it is its turn."""
        sequence = Sequence(self, await self.gate.turn(self))
        try:
            yield sequence
        finally:
            sequence.end(is_answered=False)

    def leave(self, prompt_tokens: int | None, *, is_answered: bool) -> None:
        """Give the place to the next one; how many tokens the prompt had is None where nobody counted them.

        What was not answered says nothing about how long answers take.
        """
        self.gate.leave(self, prompt_tokens, is_answered=is_answered)


@dataclass(slots=True, eq=False)
class Sequence:
    """One sequence that is computed, in the place it has."""

    slot: SequenceSlots
    place: CapacityUnit
    is_over: bool = False

    def first(self) -> None:
        """Its first token is there."""
        if self.slot.share.sequences > 1:
            self.slot.gate.learn_first(self.place.began)

    def end(self, *, is_answered: bool) -> None:
        """Give the place to the next one; only the first word counts."""
        if not self.is_over:
            self.is_over = True
            self.slot.gate.end(self, is_answered=is_answered)


_slot: ContextVar[SequenceSlots | None] = ContextVar("slot", default=None)


def current_slot() -> SequenceSlots | None:
    """That of the request that this task works for; None of no request."""
    return _slot.get()


@contextmanager
def held(slot: SequenceSlots | None) -> Iterator[None]:
    """Have what begins in the block belong to the request of this slot, None of which is no request."""
    token = _slot.set(slot)
    try:
        yield
    finally:
        _slot.reset(token)


@asynccontextmanager
async def sequence() -> AsyncGenerator[Sequence | None]:
    """
    Compute one sequence in the block, of the request that this task works for; what belongs to none waits for nobody.
    """
    slot = _slot.get()
    if slot is None:
        yield None
        return
    if (record := current_context()) is not None:
        record.sequences += 1
    async with slot.sequence() as begun:
        yield begun


def require_size(inputs: int, choices: int, *, field: str) -> None:
    """Return where the current request, with so many texts in this field and so many answers to each, is not too large.

    Raises:
        RequestError: it is more than its model takes in one request.
    """
    slot = _slot.get()
    if slot is not None:
        require_within(slot.limits, inputs, choices, field=field)


def require_within(limits: LimitsConfig, inputs: int, choices: int, *, field: str) -> None:
    """Return where a request of this size is within the limits.

    Raises:
        RequestError: it is more than these allow in one request.
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
