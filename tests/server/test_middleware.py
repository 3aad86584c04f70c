"""Streams whose source is always ready, to clients that take all of it or are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, cast

from doubles import DoubleFactory, config
from litestar.types import HTTPScope, Message, Receive, Scope, Send

from appliance.models.manager import ModelManager
from appliance.server.middleware import RequestMiddleware
from appliance.telemetry.recorder import RequestRecorder

# Far more than may go out before others have had their turns.
_MOST = 10_000

_PIECE = cast("Message", {"type": "http.response.body", "body": b"word", "more_body": True})


def _scope() -> HTTPScope:
    request = {"type": "http", "method": "POST", "path": "/", "scheme": "http", "http_version": "1.1"}
    return cast("HTTPScope", {**request, "headers": [], "client": None})


class _SentAtOnce:
    """What the server returns for a message that it takes at once: waiting for it suspends nobody."""

    def __await__(self) -> Generator[Any, None, None]:
        return iter(())  # type: ignore[return-value]  # all that is asked of it is to end


async def _receive() -> Any:
    raise AssertionError("nobody listens here")


async def test_a_stream_that_is_always_ready_is_ended_within_a_few_messages() -> None:
    """Whoever hears that the client left gets a turn, and cancels it, though sending never waits."""
    sent = 0

    def send(_: Message) -> _SentAtOnce:
        nonlocal sent
        sent += 1
        return _SentAtOnce()

    async def endless(_scope: Scope, _receive: Receive, send: Send) -> None:
        while sent < _MOST:
            await send(_PIECE)

    manager = ModelManager(config(), factory=DoubleFactory())
    middleware = RequestMiddleware(endless, manager, manager.authorizer, RequestRecorder(manager.config))
    streams = [asyncio.create_task(middleware(_scope(), _receive, cast("Send", send))) for _ in range(10)]
    await asyncio.sleep(0)
    for each in streams:
        each.cancel()
    ends = await asyncio.gather(*streams, return_exceptions=True)

    assert all(isinstance(end, asyncio.CancelledError) for end in ends)
    assert sent < _MOST / 10
