"""Clients that disconnect early: their requests are cancelled, their streams closed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from functools import cached_property
from typing import Any, TypeVar, cast

from litestar import Request, Response, post
from litestar.exceptions import ClientException
from litestar.handlers import BaseRouteHandler
from litestar.response import Stream
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp, Receive, Scope, Send

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

# The extensions that are tasks: that of `_watch`, and that of `cancel_at_end`.
_WATCH = "appliance.disconnect_watch"
_WORK = "appliance.work"

# Most short requests end before, and are spared a message of the server: a task, a future and two switches of threads.
_WATCH_AFTER_SECONDS = 0.05

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
    return await _cancel_on_disconnect(request.scope, request.receive, work)


async def _cancel_on_disconnect(scope: Scope, receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    watch: asyncio.Task[None] | None = None
    # In this task, not in one of its own: with many running streams each switch of tasks waits for all of them.
    task = cast("asyncio.Task[Any]", asyncio.current_task())
    is_done = is_disconnected = False

    def cancel(watch: asyncio.Task[None]) -> None:
        nonlocal is_disconnected
        if not is_done and not watch.cancelled():
            is_disconnected = True
            task.cancel()

    def start() -> None:
        nonlocal watch
        watch = _watch(scope, receive)
        watch.add_done_callback(cancel)

    timer = asyncio.get_running_loop().call_later(_WATCH_AFTER_SECONDS, start)
    try:
        return await work
    except BaseException as error:
        # Some work raises another error when it is cancelled, and the task may be cancelled for other reasons too.
        if is_disconnected and task.cancelling() == 1:
            raise ClientDisconnectedError from error
        raise
    finally:
        is_done = True
        timer.cancel()
        if is_disconnected:
            task.uncancel()
        if watch is not None:
            watch.remove_done_callback(cancel)


def _watch(scope: Scope, receive: Receive) -> asyncio.Task[None]:
    """Return the task that ends when the client disconnects: one for each request, because a new one is expensive."""
    extensions: dict[str, Any] = scope["extensions"]  # type: ignore[assignment]  # ours, see `RequestMiddleware`
    if (watch := extensions.get(_WATCH)) is None:
        watch = extensions[_WATCH] = asyncio.create_task(_disconnected(receive))
    return cast("asyncio.Task[None]", watch)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def cancel_at_end(request: AnyRequest, work: asyncio.Task[Any]) -> None:  # Any: of any result
    """Cancel the work at the end of the request, if it still runs: closing a stream that nobody read stops nothing."""
    request.scope["extensions"][_WORK] = work  # type: ignore[index,assignment]  # ours, see `RequestMiddleware`


def cancel_tasks(scope: Scope) -> None:
    """End the wait for the client's disconnection, and what is left of the work, at the end of a request."""
    for name in (_WATCH, _WORK):
        if (task := cast("asyncio.Task[Any] | None", (scope["extensions"] or {}).get(name))) is not None:
            task.cancel()


class before_body:  # noqa: N801 - used as a function
    """Reject requests in the block before their body is read; the body is discarded, or the client would not read
    the response.
    """

    def __init__(self, request: AnyRequest) -> None:
        self._request = request

    async def __aenter__(self) -> None:
        """Begin the block."""

    async def __aexit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        """Discard the body if the request is rejected."""
        if isinstance(error, RequestError):
            await discard(self._request.receive)


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


class _DirectRequest(Request[Any, Any, Any]):  # Any: as `AnyRequest`
    """A request whose headers are a plain dictionary, by lower-case name the first of each."""

    @cached_property
    def headers(self) -> Mapping[str, str]:  # type: ignore[override]  # all that is read of Litestar's own
        return {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in reversed(list(self.scope["headers"]))
        }


def direct_post(
    paths: Sequence[str], handle: Callable[[AnyRequest], Awaitable[Response[Any]]], opt: Mapping[str, str]
) -> BaseRouteHandler:  # Any: any content
    """Return a route that calls its function at once.

    Routing, other methods and errors are Litestar's; what it collects for the arguments of a handler, and does with the
    result, takes longer than all of the rest.
    """

    def middleware(app: ASGIApp) -> ASGIApp:  # noqa: ARG001 - Litestar gives it by name
        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            request: AnyRequest = _DirectRequest(scope, receive, send)
            response = await handle(request)
            await response.to_asgi_response(app=None, request=request)(scope, receive, send)

        return respond

    @post(paths, status_code=200, opt=opt, middleware=[middleware])
    async def unused() -> None:
        raise AssertionError("the middleware answers; this is a bug")

    return unused


class WholeResponse(Response[bytes]):
    """A response with its whole body, made and sent without Litestar's steps for cookies, media types and methods."""

    def __init__(self, content: bytes, status: int, headers: Mapping[str, str]) -> None:
        self.content, self.status_code, self.headers = content, status, dict(headers)

    def to_asgi_response(self, *_arguments: Any, **_options: Any) -> ASGIResponse:  # Any: as Litestar has them
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
        headers.append((b"content-length", b"%d" % len(self.content)))

        async def respond(_scope: Scope, _receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": self.status_code or 200, "headers": headers})
            await send({"type": "http.response.body", "body": self.content, "more_body": False})

        return respond  # type: ignore[return-value]  # Litestar only calls it


class StreamingResponse(Stream):
    """A stream that is closed when the client has read it or disconnects.

    Litestar only stops reading it: the garbage collector would close it later, with all that it holds until then. And
    it reads a stream in a task of its own, so that each chunk would wait for one more switch of tasks.
    """

    def __init__(self, content: AsyncGenerator[bytes], **options: Any) -> None:  # Any: as Litestar has them
        super().__init__(content, **options)
        self._content = content

    def to_asgi_response(self, *arguments: Any, **options: Any) -> ASGIResponse:  # Any: as above
        response = super().to_asgi_response(*arguments, **options)

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            async with aclosing(self._content):
                if response.is_head_response:
                    await response(scope, receive, send)
                    return
                await response.start_response(send)
                with contextlib.suppress(ClientDisconnectedError):
                    await _cancel_on_disconnect(scope, receive, self._send_all(send))

        return respond  # type: ignore[return-value]  # Litestar only calls it

    async def _send_all(self, send: Send) -> None:
        async for chunk in self._content:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
