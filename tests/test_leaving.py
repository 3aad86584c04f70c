"""Work that is done for a client, which may leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from litestar import Request

from appliance.api.disconnect import ClientDisconnectedError, cancel_on_disconnect, cancel_tasks
from appliance.api.pings import with_pings
from appliance.core.errors import RequestError
from appliance.core.model import ModelResponse
from appliance.core.sse import MEDIA_TYPE


class Client:
    """One that has sent all of its request, and stays until it is told to leave."""

    def __init__(self) -> None:
        self.leaves = asyncio.Event()
        self.readers = self.reads = 0

    def request(self) -> Request[Any, Any, Any]:
        """Its request."""
        scope = {"type": "http", "extensions": {}}
        return Request(scope, receive=self._receive)  # type: ignore[arg-type]  # all that it needs

    async def _receive(self) -> dict[str, str]:
        self.readers += 1
        self.reads += 1
        try:
            await self.leaves.wait()
        finally:
            self.readers -= 1
        return {"type": "http.disconnect"}


async def test_work_for_a_client_that_stays_is_done() -> None:
    """Its result is returned; one reader of the connection serves all work for a request, and ends with it."""
    client = Client()
    request = client.request()

    async def work() -> int:
        async with asyncio.timeout(60):
            while not client.readers:
                await asyncio.sleep(0.01)
        return client.readers

    assert await cancel_on_disconnect(request, work()) == 1
    assert await cancel_on_disconnect(request, work()) == 1
    cancel_tasks(request.scope)
    await asyncio.sleep(0.01)
    assert (client.readers, client.reads) == (0, 1)


async def test_work_for_a_client_that_has_left_between_is_cancelled() -> None:
    """A client may leave after some work and before the next."""
    client = Client()
    request = client.request()
    await cancel_on_disconnect(request, asyncio.sleep(0.01))
    client.leaves.set()
    await asyncio.sleep(0.01)

    with pytest.raises(ClientDisconnectedError):
        await cancel_on_disconnect(request, asyncio.sleep(60))


async def test_short_work_is_not_watched() -> None:
    """It ends before it could be cancelled, and nobody reads the connection for it."""
    client = Client()

    async def work() -> int:
        return client.readers

    assert await cancel_on_disconnect(client.request(), work()) == 0
    assert client.readers == 0


async def test_work_for_a_client_that_leaves_is_cancelled() -> None:
    """Also where it answers being cancelled with another error; the task itself goes on uncancelled."""
    client, ends = Client(), []

    async def work() -> None:
        client.leaves.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError as error:
            ends.append("cancelled")
            raise ValueError from error

    with pytest.raises(ClientDisconnectedError):
        await cancel_on_disconnect(client.request(), work())
    this = asyncio.current_task()
    assert ends == ["cancelled"]
    assert this is not None
    assert this.cancelling() == 0


async def test_an_error_of_the_work_is_its_own() -> None:
    """While the client is there."""

    async def work() -> None:
        await asyncio.sleep(0)
        raise ValueError("of the work")

    with pytest.raises(ValueError, match="of the work"):
        await cancel_on_disconnect(Client().request(), work())


async def test_a_task_that_is_cancelled_by_others_is_cancelled() -> None:
    """That is no client that left."""
    client = Client()
    task = asyncio.create_task(cancel_on_disconnect(client.request(), asyncio.sleep(60)))
    while not client.readers:
        await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_slow_message_begins_with_pings() -> None:
    """The stream of the response follows; a response that comes in time is returned as it is."""
    may_answer = asyncio.Event()

    async def tokens() -> AsyncGenerator[bytes]:
        yield b"a token"

    async def work() -> ModelResponse:
        await may_answer.wait()
        return ModelResponse(tokens(), media_type=MEDIA_TYPE)

    pinged = await with_pings(Client().request(), work(), seconds=0.01)
    assert isinstance(pinged.body, AsyncGenerator)
    first = await anext(pinged.body)
    may_answer.set()
    rest = [chunk async for chunk in pinged.body]

    assert first == b'event: ping\ndata: {"type": "ping"}\n\n'
    assert [chunk for chunk in rest if chunk != first] == [b"a token"]
    assert (await (await with_pings(Client().request(), work(), seconds=60)).read()) == b"a token"


@pytest.mark.parametrize("fails", [True, False])
async def test_an_error_after_pings_ends_the_stream(fails: bool) -> None:
    """Whether the model raises it, or an upstream answers with it."""
    may_answer = asyncio.Event()

    async def work() -> ModelResponse:
        await may_answer.wait()
        if fails:
            raise RequestError("too many", status=429)
        return ModelResponse(b'{"error": {"message": "too many"}}', status=429)

    pinged = await with_pings(Client().request(), work(), seconds=0.01)
    assert isinstance(pinged.body, AsyncGenerator)
    await anext(pinged.body)
    may_answer.set()

    with pytest.raises(RequestError, match="too many") as caught:
        await pinged.read()
    assert caught.value.status == 429


async def test_a_client_that_leaves_between_pings_cancels_the_work() -> None:
    """The stream is closed then."""
    ends = []

    async def work() -> ModelResponse:
        try:
            await asyncio.sleep(60)
        finally:
            ends.append("cancelled")
        raise AssertionError

    pinged = await with_pings(Client().request(), work(), seconds=0.01)
    assert isinstance(pinged.body, AsyncGenerator)
    await anext(pinged.body)
    await pinged.body.aclose()
    assert ends == ["cancelled"]


async def test_a_message_that_nobody_begins_to_read_is_cancelled() -> None:
    """The client leaves after the wait for the response, before the first ping."""
    request, ends = Client().request(), list[str]()

    async def work() -> ModelResponse:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise
        raise AssertionError("not reached")

    pinged = await with_pings(request, work(), seconds=0.01)
    assert isinstance(pinged.body, AsyncGenerator)
    await pinged.body.aclose()
    cancel_tasks(request.scope)
    await asyncio.sleep(0.01)

    assert ends == ["cancelled"]
