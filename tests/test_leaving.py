"""Work that is done for a client, which may leave."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from litestar import Request

from appliance.api.disconnect import ClientDisconnectedError, cancel_on_disconnect


class Client:
    """One that has sent all of its request, and stays until it is told to leave."""

    def __init__(self) -> None:
        self.leaves = asyncio.Event()
        self.readers = 0

    def request(self) -> Request[Any, Any, Any]:
        """Its request."""
        return Request({"type": "http"}, receive=self._receive)  # type: ignore[arg-type]  # all that it needs

    async def _receive(self) -> dict[str, str]:
        self.readers += 1
        try:
            await self.leaves.wait()
        finally:
            self.readers -= 1
        return {"type": "http.disconnect"}


async def test_work_for_a_client_that_stays_is_done() -> None:
    """Its result is returned, and nobody reads the connection any more."""
    client = Client()

    async def work() -> int:
        await asyncio.sleep(0.01)
        return client.readers

    assert await cancel_on_disconnect(client.request(), work()) == 1
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
    assert client.readers == 0
