"""Streams whose source is always ready, to clients that take all of it or are gone."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Generator
from typing import Any, cast

from doubles import DoubleFactory, config
from litestar.types import HTTPScope, Message, Receive, Scope, Send

from appliance.api.disconnect import SEND_CHUNK
from appliance.config.server import ServerConfig, ServerTimeoutsConfig
from appliance.core.model import SendChunk
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


class _Transport:
    """A server whose client takes what is sent, at once or only when `taking` is done."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.taking: asyncio.Future[None] | None = None

    def send(self, message: Message) -> Any:
        body = message.get("body")
        if isinstance(body, bytes):
            self.bodies.append(body)
        return self.taking or _SentAtOnce()


async def _stream(
    transport: _Transport, write: Callable[[SendChunk, Send], Awaitable[None]], **timeouts: float
) -> None:
    """A request whose response is begun, and then written by `write`."""

    async def application(scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send(_PIECE)
        await write(cast("dict[str, Any]", scope["extensions"])[SEND_CHUNK], send)

    manager = ModelManager(
        config(server=ServerConfig(timeouts=ServerTimeoutsConfig(**timeouts))), factory=DoubleFactory()
    )
    middleware = RequestMiddleware(application, manager, manager.authorizer, RequestRecorder(manager.config))
    await middleware(_scope(), _receive, cast("Send", transport.send))


async def test_a_chunk_is_sent_without_a_switch_of_tasks() -> None:
    """The server has it when the call returns, and the next one may be sent at once."""
    transport = _Transport()

    async def write(send_chunk: SendChunk, _: Send) -> None:
        assert send_chunk(b"one") is None
        assert send_chunk(b"two") is None
        assert transport.bodies[1:] == [b"one", b"two"]

    await _stream(transport, write)


async def test_a_later_message_does_not_overtake_a_chunk_that_waits() -> None:
    """What goes the usual way is sent when a slow client has taken what was sent at once."""
    transport = _Transport()

    async def write(send_chunk: SendChunk, send: Send) -> None:
        transport.taking = asyncio.get_running_loop().create_future()
        assert send_chunk(b"slow") is not None
        later = asyncio.ensure_future(send(cast("Message", {**_PIECE, "body": b"later"})))
        for _ in range(5):
            await asyncio.sleep(0)
        assert transport.bodies[1:] == [b"slow"]
        transport.taking.set_result(None)
        transport.taking = None
        await later
        assert transport.bodies[1:] == [b"slow", b"later"]

    await _stream(transport, write)


async def test_a_client_that_takes_no_chunk_is_cut_off() -> None:
    """The time to send a chunk is limited, whichever way it goes."""
    transport = _Transport()

    async def write(send_chunk: SendChunk, _: Send) -> None:
        transport.taking = asyncio.get_running_loop().create_future()
        send_chunk(b"slow")
        await asyncio.sleep(30)
        raise AssertionError("it was not cut off")

    async with asyncio.timeout(20):
        await _stream(transport, write, send_seconds=0.1)
    assert transport.taking is not None
    assert transport.taking.cancelled()


async def test_a_request_is_forgotten_with_its_response() -> None:
    """Its end waits for no garbage collection: a connection whose body was not read stays open until then."""

    class Receiving:
        async def __call__(self) -> Any:
            raise AssertionError("nobody reads the body")

    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 408, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def send(_: Message) -> None:
        pass

    manager = ModelManager(config(), factory=DoubleFactory())
    middleware = RequestMiddleware(answer, manager, manager.authorizer, RequestRecorder(manager.config))
    receiving = Receiving()
    forgotten = weakref.ref(receiving)
    gc.disable()
    try:
        request = asyncio.create_task(middleware(_scope(), cast("Receive", receiving), send))
        del receiving
        await request
        del request
        await asyncio.sleep(0)

        assert forgotten() is None
    finally:
        gc.enable()
