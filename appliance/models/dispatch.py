"""Dispatch of a request to its model: checked, queued, limited and counted, from its arrival to its last byte."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import cast

from appliance.auth import current_principal
from appliance.core import sse
from appliance.core.errors import RequestError, UnavailableError, UnsupportedOperationError
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.core.request_context import RequestContext, current_context
from appliance.core.token_usage import TokenUsage
from appliance.limits import RateLimitCharge, RateLimiter, SequenceSlots, Timeouts, use_slots
from appliance.models.model_status import ModelStatus
from appliance.models.state import RULES, State

# Their first token can be observed in a stream only; of all others the whole response is the first token.
_GENERATIONS = frozenset(
    {Operation.CHAT_COMPLETION, Operation.COMPLETION, Operation.RESPONSE, Operation.MESSAGE, Operation.SPEECH}
)

# A shorter wait is not reported as time in the queue.
_MIN_QUEUE_SECONDS = 0.001

# The tokenizer handles these beside the engine, so they have a queue of their own. The context length of the model does
# not bound the text of the first two.
_UNBOUNDED = frozenset({Operation.TOKENIZE, Operation.DETOKENIZE})
_TOKENIZER_OPERATIONS = _UNBOUNDED | {Operation.COUNT_TOKENS}


async def handle(status: ModelStatus, request: ModelRequest, rate_limiter: RateLimiter) -> ModelResponse:
    """Have the model handle a client's request; a stream is returned with its first bytes, or the error has a status.

    Raises:
        RequestError: the model cannot do this, cannot do it now, or the request is at fault.
        RateLimitedError: a limit of the model or of the client's key is exceeded.
        RequestTimeoutError: it takes too long.
        EngineDeadError: the model died during the request.
    """
    context = current_context()
    if context is not None:
        context.model, context.operation = status.name, request.operation
    _require_supported(status, request)
    if not RULES[status.state].can_answer and not (status.state is State.DRAINING and status.accepts_while_draining):
        raise _unavailable(status)
    charge = None
    if context is not None:
        charge = rate_limiter.charge(context.key, status.queue.tokens(len(request.body)))
    response = await _start(_Accounting(status, request, context, charge))
    return response if charge is None else replace(response, headers={**response.headers, **charge.headers()})


async def handle_from_model(status: ModelStatus, request: ModelRequest) -> ModelResponse:
    """Have the model handle a request that another model makes; raises as `handle` does.

    It belongs to a client's request, which is charged and recorded, and is handled until draining ends.
    """
    _require_supported(status, request)
    if not RULES[status.state].can_answer and status.state is not State.DRAINING:
        raise _unavailable(status)
    return await _start(_Accounting(status, request))


async def wait_idle(statuses: Sequence[ModelStatus], seconds: float) -> None:
    """Wait up to `seconds` until no request is running, here or at a server that computes with our help."""
    deadline = time.monotonic() + seconds
    # Polled: once in the life of a process, for counters that change at many places.
    while any(status.is_busy for status in statuses) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


def _require_supported(status: ModelStatus, request: ModelRequest) -> None:
    if request.operation not in status.model.operations:
        principal = current_principal()
        allowed = sorted(each for each in status.model.operations if principal is None or principal.may_request(each))
        raise UnsupportedOperationError(
            f"The model {status.name!r} does not support {request.operation}; "
            f"it supports: {', '.join(allowed) or 'none'}",
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


def _unavailable(status: ModelStatus) -> UnavailableError:
    return UnavailableError(status.client_message, retry_after=RULES[status.state].retry_after)


async def _start(accounting: _Accounting) -> ModelResponse:
    chunks = _respond(accounting)
    response = cast("ModelResponse", await anext(chunks))
    if isinstance(response.body, bytes):
        await chunks.aclose()
        return response
    return replace(response, body=cast("AsyncGenerator[bytes]", chunks))


async def _respond(accounting: _Accounting) -> AsyncGenerator[ModelResponse | bytes]:
    """Yield the response, then the bytes of its stream if it is one.

    A generator that has started always ends, at the latest when it is garbage collected, so no count can leak.
    """
    status, request = accounting.status, accounting.request
    timeouts = Timeouts.of(status.name, status.queue.settings.limits)
    async with accounting.admitted(timeouts) as slots:
        # The state may have changed while the request was queued.
        if not RULES[status.state].can_answer and status.state not in {State.DRAINING, State.UNAVAILABLE}:
            raise _unavailable(status)
        if accounting.usage is not None:
            request = replace(request, on_usage=accounting.usage.conclude)
        with use_slots(slots):
            work = status.model.handle(request)
            response = await (timeouts.before_first(work) if request.is_streamed else timeouts.before_end(work))
        accounting.start_response(response)
        if isinstance(response.body, bytes):
            accounting.complete(response)
            yield response
            return
        async with aclosing(response.body) as stream:
            with use_slots(slots):
                first = await timeouts.before_first(anext(stream, b""))
            accounting.start_stream()
            yield response
            usage = accounting.usage
            if usage is not None:
                usage.feed(first)
            yield first
            async with aclosing(timeouts.all_before_end(stream)) as rest:
                async for chunk in rest:
                    if usage is not None:
                        usage.feed(chunk)
                    yield chunk
        accounting.complete(response)


@dataclass(slots=True)
class _Accounting:
    """All that is counted for one request: the slots it holds, the charge of its key, its metrics, its tokens.

    Requests of models have no context and no charge.
    """

    status: ModelStatus
    request: ModelRequest
    context: RequestContext | None = None
    charge: RateLimitCharge | None = None
    usage: TokenUsage | None = field(init=False)
    """Reads the token counts in the response; None if they are known otherwise, or not needed."""
    _slots: SequenceSlots | None = None
    _is_success: bool = False
    _has_first_token: bool = False

    def __post_init__(self) -> None:
        self.usage = None if self.context is None else TokenUsage(self.context)

    @asynccontextmanager
    async def admitted(self, timeouts: Timeouts) -> AsyncGenerator[SequenceSlots]:
        """Wait for the request's turn, and hold its slots in the block; everything is settled at the end of it."""
        arrived = time.monotonic()
        is_for_tokenizer = self.request.operation in _TOKENIZER_OPERATIONS
        queue = self.status.tokenizer_queue if is_for_tokenizer else self.status.queue
        try:
            self._slots = await queue.enter(len(self.request.body), timeouts)
        except BaseException:
            if self.charge is not None:
                self.charge.refund()
            raise
        if self.context is not None:
            self.context.admitted = time.monotonic()
            has_waited = self.context.admitted - arrived > _MIN_QUEUE_SECONDS
            self.context.queued = arrived if has_waited else None
        started_ns = time.monotonic_ns()
        self.status.requests.begin()
        try:
            yield self._slots
        finally:
            self.status.requests.end(started_ns, is_success=self._is_success)
            self._settle(self._slots)

    def start_response(self, response: ModelResponse) -> None:
        """Note the kind of response, which decides whether tokens are counted in it."""
        if self.usage is not None and not (self.usage.is_needed and _has_usage(response)):
            self.usage = None

    def start_stream(self) -> None:
        """Note that the first bytes of a stream are there."""
        if self.context is not None:
            self.context.is_streamed = True
        # An engine of ours has counted its first token by now.
        if self.usage is not None and not self.usage.is_needed:
            self.usage = None
        self.first_token()

    def first_token(self) -> None:
        """Note that the first token is there."""
        self._has_first_token = True
        if self.context is not None and self.context.first is None:
            self.context.first = time.monotonic()
        if self._slots is not None:
            self._slots.first_token()

    def complete(self, response: ModelResponse) -> None:
        """Note that the response is complete."""
        self._is_success = response.status < 400
        if isinstance(response.body, bytes):
            if self.usage is not None:
                self.usage.read(response.body)
            if self._is_success and self.request.operation not in _GENERATIONS:
                self.first_token()

    def _settle(self, slots: SequenceSlots) -> None:
        prompt_tokens, output_tokens = (None, 0) if self.context is None else self.context.settle()
        slots.leave(prompt_tokens, is_success=self._is_success or self._has_first_token)
        if self.charge is not None:
            # The estimate stays if nothing counted the prompt.
            self.charge.settle((self.charge.tokens if prompt_tokens is None else prompt_tokens) + output_tokens)


def _has_usage(response: ModelResponse) -> bool:
    """Return whether a response can say how many tokens it took; one from the cache took none."""
    is_readable = response.media_type.startswith(("application/json", sse.MEDIA_TYPE))
    return is_readable and response.headers.get("x-cache") != "hit"
