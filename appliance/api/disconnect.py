"""Clients that leave early."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

from litestar import Request
from litestar.exceptions import ClientException
from litestar.types import Receive

from appliance.core.errors import RequestError

Result = TypeVar("Result")

AnyRequest = Request[Any, Any, Any]
"""A request without a user, credentials or a state, which is what Litestar's type wants to be told."""


# How long a client may go on sending a body that is refused already.
_LINGER_SECONDS = 2.0


class ClientDisconnectedError(ClientException):
    """The client closed the connection before its answer; nobody receives the status."""

    status_code = 400
    detail = "The client closed the connection."


async def cancel_on_disconnect(
    request: AnyRequest, work: Coroutine[Any, Any, Result]
) -> Result:  # Any: as Litestar has them
    """The result of `work`, which is cancelled when the client closes the connection.

    The request's body must have been read: the next thing the server says is then that the client left.

    Raises:
        ClientDisconnectedError: it left.
    """
    watch = asyncio.create_task(_left(request))
    # In this task, not in one of its own: with many streams under way each change of tasks takes as long as they do.
    task = cast("asyncio.Task[Any]", asyncio.current_task())
    is_done = is_gone = False

    def leave(watch: asyncio.Task[None]) -> None:
        nonlocal is_gone
        if not is_done and not watch.cancelled():
            is_gone = True
            task.cancel()

    watch.add_done_callback(leave)
    try:
        return await work
    except BaseException as error:
        # Some work answers being cancelled with an error of its own; others may want the task to end, too.
        if is_gone and task.cancelling() == 1:
            raise ClientDisconnectedError from error
        raise
    finally:
        is_done = True
        if is_gone:
            task.uncancel()
        watch.cancel()
        # Whoever reads on must be the only one to; in the next turn it is done, which others hear of two turns later.
        while not watch.done():  # noqa: ASYNC110 - it takes one turn
            await asyncio.sleep(0)
        if not watch.cancelled():
            watch.exception()


async def _left(request: AnyRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def before_body(request: AnyRequest) -> AsyncGenerator[None]:
    """What is refused within it is refused before anything looks at the body; the client is heard out, or it would not
    hear the refusal.
    """
    try:
        yield
    except RequestError:
        await discard(request.receive)
        raise


async def discard(receive: Receive) -> None:
    """Read the rest of a body that is refused, as long as that takes no time to speak of."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            message = await receive()
            while message["type"] == "http.request" and message["more_body"]:
                message = await receive()
