"""The WebSocket mode of OpenAI's Responses API: each message of a client is a request, its events are messages.

Every message goes through the whole server as a request of HTTP, so that keys, limits, logs and metrics are the same.
Sources: https://developers.openai.com/api/docs/guides/websocket-mode, https://www.openresponses.org/specification, and
https://asgi.readthedocs.io/en/latest/specs/www.html.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import suppress
from typing import Any

import msgspec
from litestar import Response, get
from litestar.exceptions import MethodNotAllowedException
from litestar.handlers import BaseRouteHandler
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from appliance.api import PROTOCOL
from appliance.api.disconnect import AnyRequest
from appliance.api.error_responses import error_type, rejection, status_and_body
from appliance.auth import Authorizer
from appliance.core import sse
from appliance.core.concurrency import off_loop
from appliance.core.errors import GatewayError, RequestError, UnavailableError
from appliance.core.json_edit import JsonObject, NotAnObjectError, remove
from appliance.core.model import Operation
from appliance.core.openai_types import Json
from appliance.core.request_context import current_context
from appliance.responses import events
from appliance.responses.connection_cache import ConnectionCache

Headers = Iterable[tuple[bytes, bytes]]

LEAVING = "appliance.leaving"
"""The extension of a WebSocket's scope that is an event: clients are to connect anew."""

_CACHE = "appliance.connection_cache"

# OpenAI's limit of a connection; its clients know the error.
_MAX_SECONDS = 3600.0

# OpenAI's limits of a connection: responses at the same time, and lanes with a name.
_MAX_RUNNING, _MAX_NAMES = 16, 32

# A client that sends more messages has to wait.
_MAX_WAITING = 64

_STREAM_ID = re.compile(r"[A-Za-z0-9_.-]{1,256}")

_CLOSE_SECONDS = 10.0

# Going away (RFC 6455, section 7.4.1): clients connect again.
_GOING_AWAY = 1001

# The types of events that end a response, and how they occur in JSON.
_LAST = events.LAST | {"error"}
_LAST_NAMES = tuple(f'"{name}"'.encode() for name in _LAST)

_MAX_EVENT_BYTES = 64 * 1024 * 1024

_ERROR_HEADERS = frozenset({b"retry-after", b"x-request-id"})

# Headers of the handshake that are not those of its messages; each message has a request id of its own.
_HANDSHAKE_HEADERS = (b"connection", b"upgrade", b"content-", b"transfer-", b"sec-websocket-", b"x-request-id")

_SCHEMES = {"ws": "http", "wss": "https"}

# Fields of a message that are not those of a body: the values they may have, and what to do otherwise.
_ENVELOPE: Mapping[str, tuple[tuple[bytes | None, ...], str]] = {
    "type": ((b'"response.create"',), "must be response.create"),
    "stream": ((None, b"null", b"true"), "leave it out, because over a WebSocket every response is streamed"),
    "background": ((None, b"null", b"false"), "leave it out, or send the request by POST"),
}


class ConnectionLimitError(RequestError):
    """The connection is as old as it may be."""

    code = "websocket_connection_limit_reached"


class StreamLimitError(RequestError):
    """The connection has as many lanes as it may have."""

    code = "websocket_stream_limit_reached"

    def __init__(self) -> None:
        text = f"The connection has {_MAX_NAMES} names in stream_id; use one of them again, or connect once more"
        super().__init__(text, param="stream_id")


class _Message(msgspec.Struct):
    """What is read of a message before it is answered."""

    stream_id: Any = None  # Any: validated with the other fields

    @property
    def lane(self) -> str | None:
        """The name of the lane, "" for the one without a name; None if it is wrong."""
        value = "" if self.stream_id is None else self.stream_id
        is_right = self.stream_id is None or (isinstance(value, str) and _STREAM_ID.fullmatch(value))
        return value if is_right else None


def upgrade_route(paths: list[str], authorizer: Authorizer) -> BaseRouteHandler:
    """Return the route that allows or rejects the handshake; a GET without one is no method of these paths."""

    @get(paths, opt={PROTOCOL: "openai"})
    async def upgrade(request: AnyRequest) -> Response[None]:
        if cache_of(request) is None:
            raise MethodNotAllowedException(headers={"Allow": "POST"})
        authorizer.require_operation(Operation.RESPONSE)
        return Response(None, status_code=101)

    return upgrade


def cache_of(request: AnyRequest) -> ConnectionCache | None:
    """Return the cache of the WebSocket of a request; None if the request came over HTTP."""
    return (request.scope.get("extensions") or {}).get(_CACHE)  # type: ignore[return-value]  # ours


def request_body(message: bytes) -> bytes:
    """Return the body of the request that a message stands for.

    Raises:
        RequestError: the message is something else.
    """
    try:
        document = JsonObject(message)
    except NotAnObjectError as error:
        raise RequestError(f"The message is not a request: {error}", code="invalid_json") from error
    for name, (allowed, remedy) in _ENVELOPE.items():
        if (value := document.get(name)) not in allowed:
            shown = "missing" if value is None else value[:80].decode(errors="replace")
            raise RequestError(f"{name} is {shown}; {remedy}", param=name)
    if msgspec.json.decode(message, type=_Message).lane is None:
        text = "stream_id must be 1 to 256 letters, digits, underscores, hyphens and periods; or leave it out"
        raise RequestError(text, param="stream_id", code="invalid_stream_id")
    document.change({"type": remove, "stream_id": remove, "stream": lambda _: b"true"})
    document.change({"generate": lambda value: value if value == b"false" else None})
    return document.write()


async def serve(app: ASGIApp, scope: Scope, receive: Receive, send: Send, max_bytes: int) -> None:
    """Serve a WebSocket by requests to an application for HTTP, whose bodies may have `max_bytes`."""
    await _WebSocket(app, scope, receive, send, max_bytes).run()


class _WebSocket:
    """One connection: it answers the messages of each lane one after the other, and several lanes at a time."""

    def __init__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, max_bytes: int) -> None:
        self._app, self._scope, self._receive, self._max_bytes = app, scope, receive, max_bytes
        self.send, self.cache = send, ConnectionCache(max_bytes)
        self.path: str = scope["path"]
        self.is_disconnected = asyncio.Event()
        self._leaving: asyncio.Event = (scope.get("extensions") or {}).get(LEAVING) or asyncio.Event()  # type: ignore[assignment]  # ours
        self._deadline = time.monotonic() + _MAX_SECONDS
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._running: dict[str, asyncio.Task[bool]] = {}
        self._names: set[str] = set()
        self._changed, self._has_room = asyncio.Event(), asyncio.Event()
        # Events of several lanes do not mix within a message.
        self._sending = asyncio.Lock()

    async def run(self) -> None:
        """Answer messages until the client or the server ends the connection."""
        await self._receive()
        if not await self._upgrade():
            return
        reader = asyncio.create_task(self._read())
        try:
            is_open = await self._serve()
        finally:
            # Granian closes a connection only while nobody waits for its messages.
            tasks = [reader, *self._running.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if is_open:
            await self._close()

    async def _serve(self) -> bool:
        """Answer messages until the connection is to end; return False if the client has left, or does not read."""
        is_open = True
        while is_open and not self.is_disconnected.is_set() and not self._leaving.is_set():
            self._start()
            left = self._deadline - time.monotonic()
            if not any(await _first((self._changed.wait(), self._leaving.wait()), left)):
                break
            self._changed.clear()
            for lane in [lane for lane, task in self._running.items() if task.done()]:
                is_open &= self._running.pop(lane).result()
        ends = await asyncio.gather(*self._running.values())
        self._running.clear()
        return is_open and all(ends)

    def _start(self) -> None:
        """Begin to answer the oldest messages whose lanes are free."""
        for lane, message in list(self._waiting):
            if len(self._running) < _MAX_RUNNING and lane not in self._running:
                self._waiting.remove((lane, message))
                self._running[lane] = asyncio.create_task(self._answer(message, lane))
                self._running[lane].add_done_callback(lambda _: self._changed.set())
        self._has_room.set()

    async def _upgrade(self) -> bool:
        """Accept the handshake if its route allows it; otherwise answer it with the response of the route."""
        if self._leaving.is_set():
            status = UnavailableError.status
            body, fields = rejection(self.path, UnavailableError("The server stops.", retry_after=1))
            headers: Headers = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
        else:
            exchange = _Exchange(self, b"")
            await self._app(self._request("GET", (), self.cache), exchange.receive, exchange.send)
            status, headers, body = exchange.status, exchange.headers, bytes(exchange.body)
        if status == 101:
            await self.send({"type": "websocket.accept", "subprotocol": None, "headers": []})
            return True
        # Granian adds the length.
        headers = [header for header in headers if header[0].lower() != b"content-length"]
        await self.send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await self.send({"type": "websocket.http.response.body", "body": body})  # type: ignore[arg-type]  # Granian reads no more
        return False

    def _request(self, method: str, headers: Headers, cache: ConnectionCache) -> Scope:
        kept = (header for header in self._scope["headers"] if not header[0].lower().startswith(_HANDSHAKE_HEADERS))
        request: dict[str, Any] = {  # Any: as ASGI has it
            **self._scope,
            "type": "http",
            "method": method,
            "scheme": _SCHEMES[self._scope["scheme"]],
            "headers": [*kept, *headers],
            "extensions": {_CACHE: cache},
            "state": {},
        }
        return request  # type: ignore[return-value]  # it is one of HTTP now

    async def _read(self) -> None:
        while (received := await self._receive())["type"] == "websocket.receive":
            text = received.get("text")
            message = text.encode() if text is not None else received.get("bytes") or b""
            lane = await off_loop(len(message), _lane_of, message)
            if lane and lane not in self._names and len(self._names) >= _MAX_NAMES:
                await self.send_event(_error_event(*status_and_body(self.path, StreamLimitError())), lane)
                continue
            if lane:
                self._names.add(lane)
            while self._is_full(message):
                self._has_room.clear()
                await self._has_room.wait()
            self._waiting.append((lane, message))
            self._changed.set()
        self.is_disconnected.set()
        self._changed.set()

    def _is_full(self, message: bytes) -> bool:
        size = sum(len(each) for _, each in self._waiting) + len(message)
        return len(self._waiting) >= _MAX_WAITING or (bool(self._waiting) and size > self._max_bytes)

    async def _answer(self, message: bytes, lane: str) -> bool:
        """Answer a message; return False if the client has left, or does not read."""
        exchange = _EventExchange(self, message, self.cache.view(lane), lane)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(message)).encode())]
        await self._app(self._request("POST", headers, exchange.cache), exchange.receive, exchange.send)
        return exchange.is_complete

    async def _close(self) -> None:
        if self.is_disconnected.is_set():
            return
        reason = "the server restarts; connect again"
        # A client may not read.
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                if not self._leaving.is_set():
                    reason = f"a connection lasts {_MAX_SECONDS / 60:g} minutes; connect again"
                    await self.send_event(_error_event(*status_and_body(self.path, ConnectionLimitError(reason))), "")
                await self.send({"type": "websocket.close", "code": _GOING_AWAY, "reason": reason})

    async def send_event(self, event: bytes, lane: str) -> None:
        """Send an event of a lane as a message, unless the client has left."""
        if lane:
            head, brace, members = event.partition(b"{")
            event = head + brace + f'"stream_id":"{lane}",'.encode() + members
        async with self._sending:
            if not self.is_disconnected.is_set():
                await self.send({"type": "websocket.send", "text": event.decode(errors="replace"), "bytes": None})


class _Exchange:
    """The ASGI messages of one request; it collects the response."""

    def __init__(self, socket: _WebSocket, body: bytes) -> None:
        self._socket = socket
        self._unread: bytes | None = body
        self.status = 0
        self.headers: Headers = ()
        self.body = bytearray()
        self._ended = asyncio.Event()

    @property
    def is_complete(self) -> bool:
        """Whether the whole response was sent."""
        return self._ended.is_set()

    async def receive(self) -> Any:  # Any: a message of ASGI
        """Return the body, and then the disconnection, which follows the response at the latest."""
        if self._unread is not None:
            body, self._unread = self._unread, None
            return {"type": "http.request", "body": body, "more_body": False}
        await _first((self._socket.is_disconnected.wait(), self._ended.wait()))
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take a part of the response."""
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], message["headers"]
        elif message["type"] == "http.response.body":
            is_last = not message.get("more_body")
            await self._take(message["body"], is_last=is_last)
            if is_last:
                self._ended.set()

    async def _take(self, chunk: bytes, *, is_last: bool) -> None:  # noqa: ARG002 - see the subclass
        self.body += chunk


class _EventExchange(_Exchange):
    """An exchange whose response is sent as messages: one for each event, and one for a response without events."""

    def __init__(self, socket: _WebSocket, body: bytes, cache: ConnectionCache, lane: str) -> None:
        super().__init__(socket, body)
        self.cache, self._lane = cache, lane
        self._reader: sse.EventReader | None = None
        self._has_last_event = False

    async def _take(self, chunk: bytes, *, is_last: bool) -> None:
        is_stream = dict(self.headers).get(b"content-type", b"").startswith(sse.MEDIA_TYPE.encode())
        if not is_stream:
            self.body += chunk
            if is_last:
                await self._send(self._whole())
            return
        self._reader = self._reader or sse.EventReader(_MAX_EVENT_BYTES)
        for data in (*self._reader.feed(chunk), *(self._reader.finish() if is_last else ())):
            await self._send(data)
        if is_last and not self._has_last_event:
            error = GatewayError("The model's stream ended before the response")
            await self._send(_error_event(*status_and_body(self._socket.path, error)))

    def _whole(self) -> bytes:
        """Return the event for a response that is no stream."""
        body = bytes(self.body)
        if self.status >= 300:
            return _error_event(self.status, body, dict(self.headers))
        response = events.decode(body) or {}
        return msgspec.json.encode({"type": f"response.{response.get('status')}", "response": response})

    async def _send(self, data: bytes) -> None:
        if data.strip() == sse.DONE:
            return
        if any(name in data for name in _LAST_NAMES):
            event = events.decode(data) or {}
            kind = event.get("type")
            self._has_last_event |= kind in _LAST
            if kind in {"error", "response.failed"}:
                self.cache.evict_continued()
            if kind == "error" and not isinstance(event.get("error"), dict):
                data = _late_error(event)
        await self._socket.send_event(data, self._lane)


def _lane_of(message: bytes) -> str:
    """Return the lane of a message; one that is wrong gets its error in the lane without a name."""
    try:
        return msgspec.json.decode(message, type=_Message).lane or ""
    except (ValueError, RecursionError):
        return ""


async def _first(awaited: Iterable[Coroutine[Any, Any, Any]], seconds: float | None = None) -> list[Any]:
    """Return the results of what ends first, and None for the others, which are cancelled."""
    tasks = [asyncio.create_task(each) for each in awaited]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return [task.result() if task.done() else None for task in tasks]
    finally:
        for task in tasks:
            task.cancel()


def _error_event(status: int, body: bytes, headers: Mapping[bytes, bytes] | None = None) -> bytes:
    """Return the event for an error of HTTP."""
    error = (events.decode(body) or {}).get("error")
    if not isinstance(error, dict):
        error = {"message": str(error or "The model answered with an error that is not JSON")}
    kept = {name.decode(): value.decode() for name, value in (headers or {}).items() if name in _ERROR_HEADERS}
    return _encoded(status, {**error, "headers": kept})


def _late_error(event: Json) -> bytes:
    """Return the event for an error that ended a stream."""
    context = current_context()
    status = 500 if context is None or context.late_status is None else context.late_status
    error = {name: event.get(name) for name in ("code", "message", "param")}
    return _encoded(status, error, sequence_number=event.get("sequence_number"))


def _encoded(status: int, error: Json, **more: object) -> bytes:
    full = {"param": None, **error, "type": error.get("type") or error_type(status)}
    # Open Responses requires a code.
    full["code"] = error.get("code") or full["type"]
    return msgspec.json.encode({"type": "error", "status": status, "error": full, **more})
