"""Answers to the lines of batches by the models of a server, with retries of what may succeed later."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

import structlog

from appliance.auth import Principal, authenticated
from appliance.batches.lines import BatchLine, LineResult
from appliance.config.batches import BatchStart
from appliance.core.concurrency import backoff_seconds
from appliance.core.errors import RequestError
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.core.request_context import use_context
from appliance.limits.queue import RequestQueue
from appliance.models.manager import ModelManager
from appliance.telemetry.recorder import RequestRecorder

Render = Callable[[str, Exception], tuple[int, bytes]]
"""Returns the status and the body of the response of a path to an error."""


class Respond(Protocol):
    """Answers requests for responses, which may be stored; see `ModelManager.handle`."""

    def __call__(self, name: str | None, request: ModelRequest, *, is_background: bool) -> Awaitable[ModelResponse]: ...


# A model that is overloaded or not available will be; the line waits for it.
_PAUSES = frozenset({429, 503})

# Failures of a server elsewhere, or of ours; a few more attempts may succeed.
_TRANSIENT = frozenset({408, 500, 502, 504})
_ATTEMPTS = 3

_FIRST_DELAY_SECONDS, _MAX_DELAY_SECONDS = 0.25, 30.0


class LineExecutor:
    """Answers lines; `start` says when they start beside interactive requests, None that there are none."""

    def __init__(
        self,
        manager: ModelManager,
        recorder: RequestRecorder,
        render: Render,
        respond: Respond,
        start: BatchStart | None,
    ) -> None:
        self._manager, self._recorder, self._render, self._start = manager, recorder, render, start
        self._respond = respond

    async def answer(self, line: BatchLine, request_id: str, batch_id: str, principal: Principal | None) -> LineResult:
        """Return the result of a line, however long its model is not available."""
        work = partial(self._attempt, line, request_id, batch_id, principal)

        async def attempt() -> tuple[int, bytes, int | None]:
            queue = self._queue_of(line, principal)
            if queue is None:
                return await work()
            return await queue.batch_lines.run(work, is_idle_enough=self._start == "idle")

        status, body = await with_retries(attempt)
        return LineResult(line.custom_id, request_id, status, body)

    def _queue_of(self, line: BatchLine, principal: Principal | None) -> RequestQueue | None:
        """Return the queue in whose pauses a line runs; None if it waits for none, or if the attempt will fail."""
        if self._start in {"pause", "idle"}:
            with suppress(RequestError), authenticated(principal):
                return self._manager.find(line.model).queue
        return None

    async def _attempt(
        self, line: BatchLine, request_id: str, batch_id: str, principal: Principal | None
    ) -> tuple[int, bytes, int | None]:
        """Return the status and the body of the response, and the seconds after which a retry may succeed."""
        capture = self._recorder.capture()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            with use_context(request_id) as context, authenticated(principal):
                context.method, context.path, context.route, context.protocol = "POST", line.url, line.url, "openai"
                context.key, context.batch = None if principal is None else principal.name, batch_id
                retry_after = None
                try:
                    handle = self._respond if line.operation is Operation.RESPONSE else self._manager.handle
                    request = line.request({"x-request-id": request_id})
                    response = await handle(line.model, request, is_background=self._start is not None)
                    status, body = response.status, await response.read()
                except Exception as error:
                    # vLLM raises an error of its own when it is cancelled.
                    if (task := asyncio.current_task()) is not None and task.cancelling():
                        raise asyncio.CancelledError from error
                    context.error = type(error).__name__
                    status, body = self._render(line.url, error)
                    retry_after = error.retry_after if isinstance(error, RequestError) else None
                context.status = status
            if capture is not None:
                capture.request.add(line.body)
                capture.response.add(body)
            self._recorder.record(context, capture)
        return status, body, retry_after


async def with_retries(attempt: Callable[[], Awaitable[tuple[int, bytes, int | None]]]) -> tuple[int, bytes]:
    """Return the status and the body of the response to a line, after attempts that may have succeeded later.

    `attempt` returns them, and the seconds after which the server wants the next attempt.
    """
    failures = 0
    while True:
        failures += 1
        status, body, retry_after = await attempt()
        if status not in _PAUSES and (status not in _TRANSIENT or failures >= _ATTEMPTS):
            return status, body
        delay = backoff_seconds(failures, first_seconds=_FIRST_DELAY_SECONDS, max_seconds=_MAX_DELAY_SECONDS)
        await asyncio.sleep(min(max(delay, retry_after or 0), _MAX_DELAY_SECONDS))
