"""One call under way: counted from its first moment to its last byte, whoever ends it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import cast

from appliance.auth import current_principal
from appliance.core import sse
from appliance.core.errors import RequestError, UnavailableError, UnsupportedOperationError
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.core.request_context import RequestContext, current_context
from appliance.core.token_usage import TokenUsage
from appliance.limits import RateLimitCharge, RateLimiter, SequenceSlots, Timeouts, held
from appliance.models.model_status import ModelStatus
from appliance.models.state import RULES, State

# Of these nobody sees the first token but in a stream; of any other, the whole answer is one.
_GENERATIONS = frozenset(
    {Operation.CHAT_COMPLETION, Operation.COMPLETION, Operation.RESPONSE, Operation.MESSAGE, Operation.SPEECH}
)

# A turn that comes at once is no queue.
_NO_WAIT_SECONDS = 0.001

# The tokenizer answers these, beside the engine; they wait for each other alone. Of the first two no model's length
# bounds the text.
_UNBOUNDED = frozenset({Operation.TOKENIZE, Operation.DETOKENIZE})
_OF_TOKENIZER = _UNBOUNDED | {Operation.COUNT_TOKENS}


async def handle(entry: ModelStatus, call: ModelRequest, keys: RateLimiter | None = None) -> ModelResponse:
    """Have the entry's model answer; a stream is returned once its first bytes are there,
    so that a failure before them still has a status of its own.

    Without `keys` it is an inner call, one that a call under way needs: it is answered until the drain is over.

    Raises:
        RequestError: the model cannot do this, cannot do it now, or the call itself is at fault.
        LimitedError: the model or the client's key has enough to do.
        DeadlineError: it takes too long.
        EngineDeadError: the model died over it.
    """
    # An inner call belongs to a request that has its own entry in it.
    record = None if keys is None else current_context()
    if record is not None:
        record.model, record.operation = entry.config.name, call.operation
    _require(entry, call, is_inner=keys is None)
    charge = None
    if keys is not None and record is not None:
        charge = keys.charge(record.key, entry.queue.tokens(len(call.body)))
    work = _work(entry, call, record, charge)
    reply = cast("ModelResponse", await anext(work))
    is_whole = isinstance(reply.body, bytes)
    if is_whole:
        await work.aclose()
    if charge is not None:
        reply = replace(reply, headers={**reply.headers, **charge.headers()})
    return reply if is_whole else replace(reply, body=cast("AsyncGenerator[bytes]", work))


async def wait_idle(entries: Sequence[ModelStatus], seconds: float) -> None:
    """Wait up to `seconds` until no call is under way, here or at a server that computes with our help."""
    deadline = time.monotonic() + seconds
    # Polled: the count has many writers' ends and one reader, seldom in a process's life.
    while any(entry.is_busy for entry in entries) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


def _require(entry: ModelStatus, call: ModelRequest, *, is_inner: bool) -> None:
    name, rule = entry.config.name, RULES[entry.state]
    if call.operation not in entry.model.operations:
        caller = current_principal()
        can = sorted(each for each in entry.model.operations if caller is None or caller.may_ask(each))
        raise UnsupportedOperationError(
            f"The model {name!r} does not support {call.operation}; it supports: {', '.join(can) or 'none'}",
            param="model",
            code="unsupported_operation",
        )
    most = entry.config.limits.tokenizer_bytes
    if call.operation in _UNBOUNDED and len(call.body) > most:
        raise RequestError(
            f"The body has {len(call.body)} bytes; at most {most} are tokenized in one request "
            "(limits.tokenizer_bytes), so send the text in pieces",
            status=413,
        )
    if not rule.can_answer and not (entry.state is State.DRAINING and (is_inner or entry.accepts_while_draining)):
        raise UnavailableError(entry.client_message, retry_after=rule.retry_after)


def _require_still(entry: ModelStatus) -> None:
    """Return where the model is there for a call that was let in, whatever happened while that waited for its turn."""
    if not RULES[entry.state].can_answer and entry.state not in {State.DRAINING, State.UNAVAILABLE}:
        raise UnavailableError(entry.client_message, retry_after=RULES[entry.state].retry_after)


async def _work(
    entry: ModelStatus, call: ModelRequest, record: RequestContext | None, charge: RateLimitCharge | None
) -> AsyncGenerator[ModelResponse | bytes]:
    """Yields the reply, then the bytes of its stream if it is one.

    A generator that has begun always ends, be it by the garbage collector: the count cannot leak.
    """
    deadlines = Timeouts.of(entry.config.name, entry.queue.settings.limits)
    async with _place(entry, call, record, charge, deadlines) as place:
        _require_still(entry)
        usage = None if record is None else TokenUsage(record)
        answer = entry.model.handle(call if usage is None else replace(call, on_usage=usage.conclude))
        with held(place.slot):
            reply = await (deadlines.before_first(answer) if call.is_streamed else deadlines.before_end(answer))
        if isinstance(reply.body, bytes):
            if usage is not None and usage.is_needed and _tells_usage(reply):
                usage.read(reply.body)
            place.is_good = reply.status < 400
            if place.is_good and call.operation not in _GENERATIONS:
                place.first()
            yield reply
            return
        async with aclosing(reply.body) as stream:
            with held(place.slot):
                first = await deadlines.before_first(anext(stream, b""))
            place.first()
            if record is not None:
                record.is_streamed = True
            if usage is not None and not (usage.is_needed and _tells_usage(reply)):
                usage = None
            yield reply
            if usage is not None:
                usage.feed(first)
            yield first
            async with aclosing(deadlines.all_before_end(stream)) as rest:
                async for chunk in rest:
                    if usage is not None:
                        usage.feed(chunk)
                    yield chunk
        place.is_good = reply.status < 400


@dataclass(slots=True)
class _DispatchSlot:
    """What a call under way says of itself while it is."""

    slot: SequenceSlots
    record: RequestContext | None
    is_good: bool = False
    has_first: bool = False

    def first(self) -> None:
        self.has_first = True
        if self.record is not None and self.record.first is None:
            self.record.first = time.monotonic()
        self.slot.first()


@asynccontextmanager
async def _place(
    entry: ModelStatus,
    call: ModelRequest,
    record: RequestContext | None,
    charge: RateLimitCharge | None,
    deadlines: Timeouts,
) -> AsyncGenerator[_DispatchSlot]:
    """A place in the model once it is the call's turn, until it is over; its counts, and what its key pays."""
    came = time.monotonic()
    gate = entry.tokenizer_queue if call.operation in _OF_TOKENIZER else entry.queue
    try:
        slot = await gate.enter(len(call.body), deadlines)
    except BaseException:
        if charge is not None:
            charge.refund()
        raise
    entry.requests.begin()
    if record is not None:
        record.admitted = time.monotonic()
        record.queued = came if record.admitted - came > _NO_WAIT_SECONDS else None
    began, place = time.monotonic_ns(), _DispatchSlot(slot, record)
    try:
        yield place
    finally:
        entry.requests.end(began, is_success=place.is_good)
        prompt, output = (None, 0) if record is None else record.settle()
        slot.leave(prompt, is_answered=place.is_good or place.has_first)
        if charge is not None:
            # The estimate stays where nobody counted the prompt.
            charge.settle((charge.tokens if prompt is None else prompt) + output)


def _tells_usage(reply: ModelResponse) -> bool:
    """Whether an answer has tokens to be read in it; one that was only kept cost none."""
    is_told = reply.media_type.startswith(("application/json", sse.MEDIA_TYPE))
    return is_told and reply.headers.get("x-cache") != "hit"
