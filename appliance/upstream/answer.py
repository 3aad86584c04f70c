"""
An upstream's answer, read as fast as somebody wants it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING

from appliance.errors import GatewayError, GatewayTimeoutError
from appliance.upstream.faults import broken
from appliance.upstream.section import TimeoutsSection

if TYPE_CHECKING:
    from aiohttp import ClientResponse


class Answer:
    """
    Status and headers of an answer, and its bytes on demand.

    What nobody reads stays in the connection, and so slows the upstream down. Bytes come without their content
    coding. Whoever has an answer closes it; before its end that closes the connection, and the upstream sees it.
    """

    def __init__(self, response: ClientResponse, timeouts: TimeoutsSection, asked: float) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}
        self._response = response
        self._timeouts = timeouts
        self._asked = asked
        self._silent_since: float | None = None
        self._has_begun = False

    @property
    def media_type(self) -> str:
        """
        The content type as the upstream says it.
        """
        return self.headers.get("content-type", "application/octet-stream")

    @property
    def is_event_stream(self) -> bool:
        """
        It is server-sent events.
        """
        return self._kind == "text/event-stream"

    @property
    def is_json(self) -> bool:
        """
        It is JSON.
        """
        return self._kind == "application/json" or self._kind.endswith("+json")

    @property
    def _kind(self) -> str:
        return self.media_type.partition(";")[0].strip().lower()

    async def more(self, patience: float | None = None) -> bytes | None:
        """
        What has come since the last time, waiting for the first of it; empty at the end.

        None when nothing came for `patience` seconds and the upstream may still be silent longer.

        Raises:
            GatewayError: the connection broke.
            GatewayTimeoutError: the upstream was silent for too long.
        """
        content = self._response.content
        try:
            chunk = content.read_nowait()
            if not chunk and not content.at_eof():
                chunk = await self._wait(patience)
        except TimeoutError as error:
            if asyncio.get_running_loop().time() < self._deadline:
                return None
            raise GatewayTimeoutError("The upstream was silent for too long.") from error
        except broken() as error:
            raise GatewayError("The upstream broke off in the middle of its answer.") from error
        self._has_begun, self._silent_since = True, None
        return chunk

    async def read(self) -> bytes:
        """
        The whole body.

        Raises:
            GatewayError: the connection broke.
            GatewayTimeoutError: the upstream was silent for too long.
        """
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self) -> AsyncGenerator[bytes]:
        """
        The bytes as they come; closes the answer at its end.

        Raises:
            GatewayError: the connection broke.
            GatewayTimeoutError: the upstream was silent for too long.
        """
        try:
            while chunk := await self.more():
                yield chunk
        finally:
            self.close()

    def close(self) -> None:
        """
        Let the connection go: to the next request when the body has been read, for good when not. Safe to call twice.
        """
        self._response.close()

    async def _wait(self, patience: float | None) -> bytes:
        now = asyncio.get_running_loop().time()
        if self._silent_since is None:
            self._silent_since = now
        until = self._deadline if patience is None else min(self._deadline, now + patience)
        async with asyncio.timeout_at(until):
            return await self._response.content.readany()

    @property
    def _deadline(self) -> float:
        timeouts = self._timeouts
        silent_since = self._silent_since or self._asked
        ends = silent_since + timeouts.idle_seconds
        if not self._has_begun:
            ends = self._asked + timeouts.first_byte_seconds
        return ends if timeouts.total_seconds is None else min(ends, self._asked + timeouts.total_seconds)
