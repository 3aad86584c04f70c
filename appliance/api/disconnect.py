"""Clients that disconnect early: their requests are cancelled, their streams closed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar, cast

from litestar import Request
from litestar.exceptions import ClientException
from litestar.response import Stream
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

from appliance.core.errors import RequestError
from appliance.core.model import SendChunk

Result = TypeVar("Result")

AnyRequest = Request[Any, Any, Any]
"""A request; the parameters of Litestar's type are for a user, credentials and a state, which ours do not have."""

# Proxies that buffer would deliver a stream as one late response.
UNBUFFERED: Mapping[str, str] = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""Headers of event streams."""

SEND_CHUNK = "appliance.send_chunk"
"""The extension of a request's ASGI scope that is a `SendChunk`."""

# How long a client may go on sending a body that is rejected already.
_DISCARD_SECONDS = 2.0


class ClientDisconnectedError(ClientException):
    """The client closed the connection before the response; nobody receives the status."""

    status_code = 400
    detail = "The client closed the connection."


async def cancel_on_disconnect(
    request: AnyRequest, work: Coroutine[Any, Any, Result]
) -> Result:  # Any: as Litestar has them
    """Return the result of `work`, which is cancelled when the client closes the connection.

    The request's body must have been read, so that the next message can only be the disconnection.

    Raises:
        ClientDisconnectedError: the client closed the connection.
    """
    watch = asyncio.create_task(_disconnected(request))
    # In this task, not in one of its own: with many running streams each switch of tasks waits for all of them.
    task = cast("asyncio.Task[Any]", asyncio.current_task())
    is_done = is_disconnected = False

    def cancel(watch: asyncio.Task[None]) -> None:
        nonlocal is_disconnected
        if not is_done and not watch.cancelled():
            is_disconnected = True
            task.cancel()

    watch.add_done_callback(cancel)
    try:
        return await work
    except BaseException as error:
        # Some work raises another error when it is cancelled, and the task may be cancelled for other reasons too.
        if is_disconnected and task.cancelling() == 1:
            raise ClientDisconnectedError from error
        raise
    finally:
        is_done = True
        if is_disconnected:
            task.uncancel()
        watch.cancel()
        # The watch must have finished before someone else reads from `receive`; cancellation takes one loop iteration.
        while not watch.done():  # noqa: ASYNC110 - it takes one turn
            await asyncio.sleep(0)
        if not watch.cancelled():
            watch.exception()


async def _disconnected(request: AnyRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def before_body(request: AnyRequest) -> AsyncGenerator[None]:
    """Reject requests in the block before their body is read; the body is discarded, or the client would not read
    the response.
    """
    try:
        yield
    except RequestError:
        await discard(request.receive)
        raise


async def discard(receive: Receive) -> None:
    """Read and discard the rest of a rejected body, for a short time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_SECONDS):
            message = await receive()
            while message["type"] == "http.request" and message["more_body"]:
                message = await receive()


def chunk_sender(request: AnyRequest) -> SendChunk | None:
    """Return what sends chunks of a stream that is sent unchanged; see `ModelRequest.send`."""
    return (request.scope.get("extensions") or {}).get(SEND_CHUNK)  # type: ignore[return-value]  # ours


class StreamingResponse(Stream):
    """A stream that is closed when the client has read it or disconnects.

    Litestar only stops reading it: the garbage collector would close it later, with all that it holds until then.
    """

    def __init__(self, content: AsyncGenerator[bytes], **options: Any) -> None:  # Any: as Litestar has them
        super().__init__(content, **options)
        self._content = content

    def to_asgi_response(self, *arguments: Any, **options: Any) -> ASGIResponse:  # Any: as above
        response = super().to_asgi_response(*arguments, **options)

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            async with aclosing(self._content):
                await response(scope, receive, send)

        return respond  # type: ignore[return-value]  # Litestar only calls it
