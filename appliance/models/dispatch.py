"""Dispatch of a request to its model: checked, queued, limited and counted, from its arrival to its last byte."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from appliance.auth import current_principal
from appliance.config.models import FallbackReason
from appliance.core import sse
from appliance.core.errors import (
    EngineDeadError,
    RequestError,
    UnavailableError,
    UnknownModelError,
    UnsupportedOperationError,
)
from appliance.core.model import (
    SINGLE_FRONT_END,
    TEXT_GENERATIONS,
    FrontEnd,
    ModelRequest,
    ModelResponse,
    Operation,
)
from appliance.core.request_context import RequestContext, current_context
from appliance.core.token_usage import TokenUsage
from appliance.limits.queue import SequenceSlots, current_slots, use_slots
from appliance.limits.rate_limiter import RateLimitCharge, RateLimiter
from appliance.limits.timeouts import Timeouts
from appliance.models.fallback import reason_of, request_for
from appliance.models.model_status import ModelStatus
from appliance.models.state import State
from appliance.telemetry import metrics

log: structlog.stdlib.BoundLogger = structlog.get_logger()

FALLBACK_HEADER = "x-fallback-model"
"""The header with the name of the model that answered, where it is not the one that the client requested."""

# Their first token can be observed in a stream only; of all others the whole response is the first token.
_STREAMABLE_OPERATIONS = TEXT_GENERATIONS | {Operation.SPEECH}

# A shorter wait is not reported as time in the queue.
_MIN_QUEUE_SECONDS = 0.001

# The tokenizer handles these beside the engine, so they have a queue of their own. The context length of the model does
# not bound the text of the first two.
_UNBOUNDED = frozenset({Operation.TOKENIZE, Operation.DETOKENIZE})
_TOKENIZER_OPERATIONS = _UNBOUNDED | {Operation.COUNT_TOKENS, Operation.TOKENIZER_INFO}


async def handle(
    status: ModelStatus,
    request: ModelRequest,
    rate_limiter: RateLimiter,
    *,
    name: str | None = None,
    is_background: bool = False,
    find: Callable[[str], ModelStatus | None],
) -> ModelResponse:
    """Have the model handle a client's request; a stream is returned with its first bytes, or the error has a status.

    `name` is the one of the model's names that the client uses, None its own. A background request waits, however long
    it takes, for capacity that interactive requests leave. The lines of a batch cost their key tokens, but no requests.
    If the model cannot answer, its fallbacks do, which `find` returns; if they cannot either, its error is final.

    Raises:
        RequestError: the model cannot do this now, a limit is exceeded, or the request is at fault.
        EngineDeadError: the model died during the request.
    """
    name = name or status.name

    async def ask(target: ModelStatus, target_name: str) -> ModelResponse:
        other = await request_for(request, target_name, name)
        return await handle(target, other, rate_limiter, name=target_name, is_background=is_background, find=find)

    attempt = _attempt(status, request, rate_limiter, name, is_background=is_background)
    return await _with_fallbacks(status, request, attempt, ask, find)


async def _with_fallbacks(
    status: ModelStatus,
    request: ModelRequest,
    attempt: Coroutine[Any, Any, ModelResponse],  # Any: as `Coroutine` has them
    ask: Callable[[ModelStatus, str], Awaitable[ModelResponse]],
    find: Callable[[str], ModelStatus | None],
) -> ModelResponse:
    """Return the response of the model, or that of `ask` for one of its fallbacks if the model cannot answer."""
    if not status.config.fallback:
        return await attempt
    outcome: ModelResponse | RequestError | EngineDeadError
    try:
        outcome = await attempt
    except (RequestError, EngineDeadError) as error:
        outcome = error
    if (reason := _fallback_reason(status, outcome)) is not None:
        usable = [each for each in status.config.fallback if reason in each.on]
        targets = [(target, each.model) for each in usable if (target := find(each.model)) is not None]
        supported = [(target, each) for target, each in targets if request.operation in target.model.operations]
        if (response := await _fall_back(status, reason, supported, ask)) is not None:
            return response
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def _fall_back(
    status: ModelStatus,
    reason: FallbackReason,
    targets: Sequence[tuple[ModelStatus, str]],
    ask: Callable[[ModelStatus, str], Awaitable[ModelResponse]],
) -> ModelResponse | None:
    """Return the response of the first target that can answer; None if none can."""
    context = current_context()
    model = None if context is None else context.model
    for target, name in targets:
        log.info("request.fell_back", model=status.name, target=target.name, reason=reason)
        metrics.FALLBACKS.labels(status.name, target.name, reason).inc()
        if context is not None:
            context.refused = None
        try:
            response = await ask(target, name)
        except (RequestError, EngineDeadError) as error:
            # Only the method of a Python class may know that it does not support the operation.
            if reason_of(error) is None and not isinstance(error, UnsupportedOperationError):
                raise
        else:
            if reason_of(response) is None:
                return replace(response, headers={FALLBACK_HEADER: name, **response.headers})
    if context is not None:
        context.model = model
    return None


async def _attempt(
    status: ModelStatus, request: ModelRequest, rate_limiter: RateLimiter, name: str, *, is_background: bool
) -> ModelResponse:
    """Have one model handle the request; if a fallback may follow, its key is not charged."""
    context = current_context()
    if context is not None:
        context.model, context.operation = status.name, request.operation
    _require_supported(status, request, name)
    if not (status.rule.can_answer or (status.state is State.DRAINING and status.accepts_while_draining)):
        raise unavailable(status, name)
    charge = None
    if context is not None:
        tokens = status.queue.tokens(len(request.body))
        charge = rate_limiter.charge(context.key, tokens, requests=0 if context.batch else 1)
    exchange = _Exchange(status, name, request, context, charge, is_background)
    if charge is None:
        return await exchange.start()
    try:
        response = await exchange.start()
    except (RequestError, EngineDeadError) as error:
        if _fallback_reason(status, error) is not None:
            charge.refund()
        raise
    if _fallback_reason(status, response) is not None:
        charge.refund()
    return replace(response, headers={**response.headers, **charge.headers()})


def _fallback_reason(
    status: ModelStatus, outcome: ModelResponse | RequestError | EngineDeadError
) -> FallbackReason | None:
    """Return why a fallback of the model may answer instead; None if it has none for that."""
    fallbacks = status.config.fallback
    reason = reason_of(outcome) if fallbacks else None
    return reason if any(reason in each.on for each in fallbacks) else None


class PeerClient:
    """The models of a server as one of them sees the others; its requests are queued and counted like any client's.

    They belong to a client's request, which is charged and recorded, and came before the server drained.
    """

    def __init__(self, find: Callable[[str], ModelStatus | None], front_end: FrontEnd = SINGLE_FRONT_END) -> None:
        self._find_any = find
        self.front_end = front_end

    def operations(self, name: str) -> frozenset[Operation]:
        return self._find(name).model.operations

    def check(self, name: str) -> None:
        status = self._find(name)
        others = [self._find_any(each.model) for each in status.config.fallback if "unavailable" in each.on]
        if status.has_started and any(other is not None and other.rule.can_answer for other in others):
            return
        text = f"its target {name!r} is {status.public_state}"
        if status.state in {State.FAILED, State.STOPPED}:
            raise EngineDeadError(text)
        if not status.rule.can_answer and status.state is not State.DRAINING:
            raise UnavailableError(text, retry_after=status.rule.retry_after)

    async def handle(self, name: str, request: ModelRequest) -> ModelResponse:
        # The client's model may change the stream, and its bytes are for the client of that model only.
        request = replace(request, send=None)

        async def ask(_target: ModelStatus, target_name: str) -> ModelResponse:
            return await self.handle(target_name, await request_for(request, target_name, name))

        status = self._find(name)
        return await _with_fallbacks(status, request, self._attempt(status, name, request), ask, self._find_any)

    async def _attempt(self, status: ModelStatus, name: str, request: ModelRequest) -> ModelResponse:
        _require_supported(status, request, name)
        if not status.rule.can_answer and status.state is not State.DRAINING:
            raise unavailable(status, name)
        slots = current_slots()
        return await _Exchange(status, name, request, is_background=slots is not None and slots.is_background).start()

    def _find(self, name: str) -> ModelStatus:
        if (status := self._find_any(name)) is None:
            raise UnknownModelError(f"There is no model {name!r}")
        return status


async def wait_idle(statuses: Sequence[ModelStatus], seconds: float) -> None:
    """Wait up to `seconds` until no request is running, here or at a server that computes with our help."""
    deadline = time.monotonic() + seconds
    # Polled: once in the life of a process, for counters that change at many places.
    while any(status.is_busy for status in statuses) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


def _require_supported(status: ModelStatus, request: ModelRequest, name: str) -> None:
    if request.operation not in status.model.operations:
        principal = current_principal()
        allowed = sorted(each for each in status.model.operations if principal is None or principal.may_request(each))
        raise UnsupportedOperationError(
            f"The model {name!r} does not support {request.operation}; it supports: {', '.join(allowed) or 'none'}",
            param="model",
            code="unsupported_operation",
        )
    max_bytes = status.config.limits.tokenizer_bytes
    if request.operation in _UNBOUNDED and len(request.body) > max_bytes:
        raise RequestError(
            f"The body has {len(request.body)} bytes; at most {max_bytes} are tokenized in one request "
            "(limits.tokenizer_bytes), so send the text in pieces",
            status=413,
        )


def unavailable(status: ModelStatus, name: str) -> UnavailableError:
    """Return the error of requests that use this name of a model that cannot answer now."""
    return UnavailableError(status.client_message(name), retry_after=status.rule.retry_after)


@dataclass(slots=True)
class _Exchange:
    """A request and its response, and all that is counted for them: slots, the charge of the key, metrics, tokens.

    Requests of models have no context and no charge.
    """

    status: ModelStatus
    name: str
    """The model's name that the request uses."""
    request: ModelRequest
    context: RequestContext | None = None
    charge: RateLimitCharge | None = None
    is_background: bool = False
    _usage: TokenUsage | None = None
    _slots: SequenceSlots = field(init=False)
    _timeouts: Timeouts = field(init=False)
    _started_ns: int = 0
    _is_success: bool = False
    _has_first_token: bool = False

    async def start(self) -> ModelResponse:
        """Return the response, with the rest of its stream if it is one."""
        await self._enter()
        chunks = None
        try:
            response = await self._handle()
            if isinstance(response.body, bytes):
                self._read(response, response.body)
                return response
            chunks = self._relay(response, response.body)
        finally:
            if chunks is None:
                self._leave()
        # Nothing, once the first bytes are there.
        await anext(chunks)
        return replace(response, body=chunks)

    async def _enter(self) -> None:
        """Wait for the request's turn; it must leave again."""
        context, charge, arrived, limits = self.context, self.charge, time.monotonic(), self.status.queue.limits
        is_tokenized = self.request.operation in _TOKENIZER_OPERATIONS
        queue = self.status.tokenizer_queue if is_tokenized else self.status.queue
        size, self._timeouts = len(self.request.body), Timeouts.of(self.name, limits)
        try:
            if self.is_background:
                self._slots = await queue.enter_background(size)
                # Its time begins with its turn, because nobody waits for it.
                self._timeouts = Timeouts.of(self.name, self.status.queue.limits)
            else:
                self._slots = await queue.enter(size, self._timeouts)
        except BaseException:
            if charge is not None:
                charge.refund()
            raise
        if context is not None:
            context.admitted = time.monotonic()
            context.queued = arrived if context.admitted - arrived > _MIN_QUEUE_SECONDS else None
            self._usage = TokenUsage(context)
        self._started_ns = time.monotonic_ns()

    def _leave(self) -> None:
        """Settle everything at the end of a request that entered."""
        self.status.requests.add(time.monotonic_ns() - self._started_ns, is_success=self._is_success)
        prompt_tokens, output_tokens = (None, 0) if self.context is None else self.context.settle()
        self._slots.leave(prompt_tokens, is_success=self._is_success or self._has_first_token)
        if (charge := self.charge) is not None:
            # The estimate stays if nothing counted the prompt.
            charge.settle((charge.tokens if prompt_tokens is None else prompt_tokens) + output_tokens)

    async def _handle(self) -> ModelResponse:
        """Return the model's response."""
        status, request, timeouts = self.status, self.request, self._timeouts
        self._require_still_possible()
        if self._usage is not None:
            request = replace(request, on_usage=self._usage.conclude)
        request = await status.presets.apply(self.name, request)
        with use_slots(self._slots):
            work = status.model.handle(request)
            return await (timeouts.before_first(work) if request.is_streamed else timeouts.before_end(work))

    def _read(self, response: ModelResponse, body: bytes) -> None:
        """Read the tokens in a whole response."""
        self._is_success = response.status < 400
        if (reader := self._reader(response)) is not None:
            reader.read(body)
        if self._is_success and self.request.operation not in _STREAMABLE_OPERATIONS:
            self._first_token()

    async def _relay(self, response: ModelResponse, body: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        """Yield nothing as soon as the first bytes of a stream are there, then all of its bytes.

        A generator that has started always ends, at the latest when it is garbage collected, so no count can leak.
        """
        try:
            async with aclosing(body) as stream:
                with use_slots(self._slots):
                    first = await self._timeouts.before_first(anext(stream, b""))
                if self.context is not None:
                    self.context.is_streamed = True
                # An engine of ours has counted its first token by now.
                reader = self._reader(response)
                self._first_token()
                yield b""
                if reader is not None:
                    reader.feed(first)
                yield first
                async with aclosing(self._timeouts.all_before_end(stream)) as rest:
                    async for chunk in rest:
                        if reader is not None:
                            reader.feed(chunk)
                        yield chunk
            self._is_success = response.status < 400
        finally:
            self._leave()

    def _require_still_possible(self) -> None:
        """Raise RequestError for what has changed while the request was queued."""
        status, context = self.status, self.context
        if not status.rule.can_answer and status.state not in {State.DRAINING, State.UNAVAILABLE}:
            raise unavailable(status, self.name)
        if context is not None and context.on_admitted is not None:
            context.on_admitted()

    def _first_token(self) -> None:
        self._has_first_token = True
        if self.context is not None and self.context.first is None:
            self.context.first = time.monotonic()
        self._slots.first_token()

    def _reader(self, response: ModelResponse) -> TokenUsage | None:
        """Return what reads the tokens in a response; None if they are known otherwise, or it came from the cache."""
        usage = self._usage
        is_readable = response.media_type.startswith(("application/json", sse.MEDIA_TYPE))
        is_cached = response.headers.get("x-cache") == "hit"
        return usage if usage is not None and usage.is_needed and is_readable and not is_cached else None
