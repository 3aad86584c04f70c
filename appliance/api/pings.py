"""Pings: events in a stream of Anthropic's messages before the first token, after a long prompt or a wait in the queue.

Without them the client shows nothing, and a proxy on the way closes the connection, nginx after 60 seconds of silence.
Source: https://docs.anthropic.com/en/api/messages-streaming, ping events and error events.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any

from appliance.api.disconnect import AnyRequest, cancel_at_end, cancel_on_disconnect
from appliance.core import sse
from appliance.core.errors import GatewayError, RequestError
from appliance.core.model import ModelResponse
from appliance.core.server_errors import ServerError

_PING = sse.event(b'{"type": "ping"}', "ping")

_SECONDS = 10.0


async def with_pings(
    request: AnyRequest, work: Coroutine[Any, Any, ModelResponse], seconds: float = _SECONDS
) -> ModelResponse:  # Any: as `Coroutine` has them
    """Return the response of `work`, or after `seconds` a stream that has pings until the response begins.

    The stream's status is 200, so an error of `work` is the last event.

    Raises:
        ClientDisconnectedError: the client closed the connection.
    """
    task = asyncio.create_task(work)
    cancel_at_end(request, task)
    try:
        await cancel_on_disconnect(request, _wait(task, seconds))
    except BaseException:
        await _abandon(task)
        raise
    return task.result() if task.done() else ModelResponse(_pinged(task, seconds), media_type=sse.MEDIA_TYPE)


async def _pinged(task: asyncio.Task[ModelResponse], seconds: float) -> AsyncGenerator[bytes]:
    try:
        while not task.done():
            yield _PING
            await _wait(task, seconds)
    except BaseException:
        await _abandon(task)
        raise
    response = task.result()
    if isinstance(response.body, bytes):
        if response.status >= 400:
            error = ServerError.of(response.body)
            raise RequestError(error.message or "", status=response.status, param=error.param, code=error.code)
        raise GatewayError("The upstream answered without a stream, although one was requested.")
    async with aclosing(response.body) as chunks:
        async for chunk in chunks:
            yield chunk


async def _wait(task: asyncio.Task[ModelResponse], seconds: float) -> None:
    await asyncio.wait({task}, timeout=seconds)


async def _abandon(task: asyncio.Task[ModelResponse]) -> None:
    """Cancel the work, and close the response that it may have by now."""
    task.cancel()
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(outcome, ModelResponse) and not isinstance(outcome.body, bytes):
        await outcome.body.aclose()
