"""Streaming responses whose generator is closed at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from litestar.response import Stream
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send


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
