"""What passes between the server and the application in one request."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any

from litestar.types import Message, Receive, Send

from appliance.core.request_context import LEFT, RequestContext
from appliance.telemetry.payloads import BodyCapture

Headers = Iterable[tuple[bytes, bytes]]


class AsgiMessages:
    """What passes between the server and the application, and what the record learns from it."""

    __slots__ = ("_id", "_is_whole", "_receive", "_record", "_send")

    def __init__(self, record: RequestContext, request_id: bytes, receive: Receive, send: Send) -> None:
        self._record, self._id, self._receive, self._send = record, request_id, receive, send
        self._is_whole = False

    async def receive(self) -> Any:  # Any: a message of ASGI
        """Hears of a client that leaves before its answer is whole."""
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._is_whole:
            self._record.status = LEFT
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """Adds the id, and hears of the status and the end; no coroutine of its own, as in `Parting`."""
        if message["type"] == "http.response.start":
            self._record.status = self._record.status or message["status"]
            message["headers"] = [*message["headers"], (b"x-request-id", self._id)]
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            self._is_whole = True
        return self._send(message)

    def close(self) -> None:
        """The application is done; an answer that neither ended nor failed was given up."""
        if not self._is_whole and self._record.late_status is None:
            self._record.status = LEFT


def tapped(copy: BodyCapture, headers: Headers, receive: Receive, send: Send) -> tuple[Receive, Send]:
    """The same two, which copy both bodies on their way; `headers` are those of the request."""
    copy.request.media_type = _media_type(headers)

    async def hear() -> Any:  # Any: a message of ASGI
        message = await receive()
        if message["type"] == "http.request":
            copy.request.add(message.get("body", b""))
        return message

    async def say(message: Message) -> None:
        if message["type"] == "http.response.start":
            copy.response.media_type = _media_type(message["headers"])
        elif message["type"] == "http.response.body":
            copy.response.add(message.get("body", b""))
        await send(message)

    return hear, say


def _media_type(headers: Headers) -> str:
    types = (value for name, value in headers if name.lower() == b"content-type")
    return next(types, b"application/octet-stream").decode("latin-1")
