"""An upstream's answer, read as fast as somebody wants it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import TYPE_CHECKING

from appliance.config.upstreams import UpstreamConfig
from appliance.core import sse
from appliance.core.errors import GatewayError, GatewayTimeoutError
from appliance.proxy.decoding import decoder
from appliance.proxy.errors import broken

if TYPE_CHECKING:
    from aiohttp import ClientResponse

_BROKE_OFF = "The upstream broke off in the middle of its answer."

_SILENT = "The upstream was silent for too long."
_UNBEGUN = "The upstream sent no whole line of its stream in time."

# A fast upstream may have sent a megabyte since the last time. The event loop does the work of one piece of it, then
# that of the other streams, and of probes.
_MOST_AT_ONCE = 16 * 1024


class UpstreamResponse:
    """Status and headers of an answer, and its bytes on demand.

    What nobody reads stays in the connection, and so slows the upstream down. Bytes come without their content
    coding. Whoever has an answer closes it; before its end that closes the connection, and the upstream sees it.

    Raises:
        GatewayError: nobody here knows its content coding.
    """

    def __init__(self, response: ClientResponse, config: UpstreamConfig, asked: float) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}
        self.longest = config.max_response_bytes
        """Most bytes of it that are held at once."""
        self._decoder = decoder(self.headers.get("content-encoding", ""))
        self._decoded: Iterator[bytes] = iter(())
        self._response = response
        self._timeouts = config.timeouts
        self._asked = asked
        self._silent_since: float | None = None
        self._has_begun = False
        # Of events: a line that never ends is as good as no answer.
        self._is_in_first_line = self.is_event_stream

    @property
    def media_type(self) -> str:
        """The content type as the upstream says it."""
        said = self.headers.get("content-type", "")
        return said if said.isascii() and said.isprintable() and said else "application/octet-stream"

    @property
    def is_event_stream(self) -> bool:
        """It is server-sent events."""
        return self._kind == sse.MEDIA_TYPE

    @property
    def is_json(self) -> bool:
        """It is JSON."""
        return self._kind == "application/json" or self._kind.endswith("+json")

    @property
    def _kind(self) -> str:
        return self.media_type.partition(";")[0].strip().lower()

    async def first(self, patience: float | None = None) -> bytes | None:
        """As `more`, the beginning of the body: of events at least a line, unless it is silent for `patience` seconds.

        Raises:
            GatewayError: the connection broke.
            GatewayTimeoutError: there is none in time.
        """
        piece = await self.more(patience)
        held, size = [piece or b""], len(piece or b"")
        while piece and self._is_in_first_line:
            piece = await self.more(patience)
            held.append(piece or b"")
            size += len(held[-1])
            self.require_room(size)
        return b"".join(held) if size else piece

    async def more(self, patience: float | None = None) -> bytes | None:
        """What has come since the last time, waiting for the first of it; empty at the end.

        None when nothing came for `patience` seconds and the upstream may still be silent longer.

        Raises:
            GatewayError: the connection broke.
            GatewayTimeoutError: the upstream was silent for too long.
        """
        piece = await self._more_decoded(patience)
        if self._is_in_first_line and piece and (b"\n" in piece or b"\r" in piece):
            self._is_in_first_line = False
        return piece

    async def _more_decoded(self, patience: float | None) -> bytes | None:
        while (piece := self._next_decoded()) is None:
            chunk = await self._more_coded(patience)
            if chunk is None or self._decoder is None:
                return chunk
            if not chunk:
                if not self._decoder.is_at_end:
                    raise GatewayError(_BROKE_OFF, detail="its answer's content coding ends in the middle")
                return chunk
            self._decoded = self._decoder.feed(chunk)
        # A few bytes can become a great many pieces, none of which is waited for.
        await asyncio.sleep(0)
        return piece

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            GatewayError: the connection broke.
            GatewayTimeoutError: the upstream was silent for too long.
        """
        chunks, size = [], 0
        async for chunk in self.chunks():
            size += len(chunk)
            self.require_room(size)
            chunks.append(chunk)
        return b"".join(chunks)

    def require_room(self, size: int) -> None:
        """Return where so many bytes of it may be held at once.

        Raises:
            GatewayError: they are too many.
        """
        if size > self.longest:
            raise GatewayError(
                "The upstream's answer is too long.",
                detail=f"its answer is longer than {self.longest} bytes; set max_response_bytes where that is right",
            )

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The bytes as they come; closes the answer at its end.

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

    def _next_decoded(self) -> bytes | None:
        try:
            return next(self._decoded, None)
        except ValueError as error:
            coding = self.headers.get("content-encoding")
            raise GatewayError(
                f"The upstream's answer is not {coding}, which it says it is.",
                detail=f"its answer is no {coding}: {error}",
            ) from error

    async def _more_coded(self, patience: float | None) -> bytes | None:
        """As `more`, as the bytes came."""
        if self._is_in_first_line and asyncio.get_running_loop().time() >= self._begins_until:
            raise GatewayTimeoutError(_UNBEGUN)
        content = self._response.content
        try:
            chunk = content.read_nowait(_MOST_AT_ONCE)
            if not chunk and not content.at_eof():
                chunk = await self._wait(patience)
            elif len(chunk) == _MOST_AT_ONCE:
                # There may be more, and others wait for the event loop too, probes among them.
                await asyncio.sleep(0)
        except TimeoutError as error:
            if asyncio.get_running_loop().time() < self._deadline:
                return None
            is_silent = not self._has_begun or self._deadline < self._begins_until or not self._is_in_first_line
            raise GatewayTimeoutError(_SILENT if is_silent else _UNBEGUN) from error
        except broken() as error:
            raise GatewayError(_BROKE_OFF, detail=f"it broke off in the middle of its answer: {error}") from error
        self._has_begun, self._silent_since = True, None
        return chunk

    async def _wait(self, patience: float | None) -> bytes:
        now = asyncio.get_running_loop().time()
        if self._silent_since is None:
            self._silent_since = now
        until = self._deadline if patience is None else min(self._deadline, now + patience)
        async with asyncio.timeout_at(until):
            return await self._response.content.read(_MOST_AT_ONCE)

    @property
    def _deadline(self) -> float:
        timeouts = self._timeouts
        silent_since = self._silent_since or self._asked
        ends = silent_since + timeouts.idle_seconds if self._has_begun else self._begins_until
        if self._is_in_first_line:
            ends = min(ends, self._begins_until)
        return ends if timeouts.total_seconds is None else min(ends, self._asked + timeouts.total_seconds)

    @property
    def _begins_until(self) -> float:
        return self._asked + self._timeouts.first_byte_seconds
