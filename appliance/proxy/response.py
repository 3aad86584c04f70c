"""An upstream's response, read as fast as its reader wants it, without its content coding.

Sources: RFC 9110, section 8.4.1; RFC 8878 and RFC 9659 for zstd. We request no content coding; some upstreams use one
anyway.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import zstandard
from aiohttp import ClientError

from appliance.config.upstreams import UpstreamConfig
from appliance.core import sse
from appliance.core.errors import GatewayError, GatewayTimeoutError
from appliance.over_chat import Translator
from appliance.proxy.connection import RawResponse

CONNECTION_ERRORS: tuple[type[Exception], ...] = (ClientError, OSError)
"""Raised when a connection fails or breaks; timeouts are among them."""

_TRUNCATED = "The upstream closed the connection in the middle of its response."
_SILENT = "The upstream was silent for too long."
_NO_LINE = "The upstream sent no complete line of its stream in time."

# A fast upstream may have sent a megabyte since the last read. The event loop handles one piece of it, then the other
# streams and probes.
_READ_BYTES = 16 * 1024

# A slice of this size decodes to at most 64 KiB of deflate, or 2 MiB of zstd: 128 KiB for each block of 4 bytes.
_SLICE_BYTES = 64
_DECODED_BYTES = 64 * 1024

# RFC 9659, section 3: the web need not support larger windows.
_ZSTD_WINDOW_BYTES = 8 * 1024 * 1024


class UpstreamResponse:
    """Status and headers of a response, and its body on demand.

    Bytes that are not read stay in the connection, and so slow the upstream down. The owner of a response closes it;
    closing it before its end closes the connection, and the upstream notices.

    Raises:
        GatewayError: the content coding is not supported, the connection breaks, or the body is too long.
        GatewayTimeoutError: the upstream is silent for too long.
    """

    def __init__(self, response: RawResponse, config: UpstreamConfig, sent_at: float) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}
        self.media_type, essence = _media_type(self.headers.get("content-type", ""))
        self.is_event_stream = essence == sse.MEDIA_TYPE
        self.is_json = essence == "application/json" or essence.endswith("+json")
        self.max_bytes = config.max_response_bytes
        """Limit of the bytes that are held at once."""
        self.is_complete = False
        """The body was read to its end, or its status was all that was needed."""
        self.error: GatewayError | None = None
        """Why the body cannot be read."""
        self.translator: Translator | None = None
        """What translates it for the client; None if it is of the client's protocol."""
        self.on_close: Callable[[UpstreamResponse], None] | None = None
        """Called once, when the response is closed."""
        self._decoder = content_decoder(self.headers.get("content-encoding", ""))
        self._decoded: Iterator[bytes] = iter(())
        self._response = response
        self._timeouts = config.timeouts
        self._sent_at = sent_at
        self._silent_since: float | None = None
        self._has_begun = False
        # An event stream must send a line in time: one that never ends is as good as no response.
        self._is_in_first_line = self.is_event_stream
        self._first: list[bytes | None] = []

    async def start(self, patience: float | None = None) -> bool:
        """Wait for the first bytes, in an event stream for the first line; they are kept for `read_piece`.

        Return False if nothing came within `patience` seconds and the upstream may still be silent longer.
        """
        piece = await self.read_piece(patience)
        pieces, size = [piece or b""], len(piece or b"")
        while piece and self._is_in_first_line:
            piece = await self.read_piece(patience)
            pieces.append(piece or b"")
            size += len(pieces[-1])
            self.require_room(size)
        self._first = [b"".join(pieces) if size else piece]
        return self._first != [None]

    async def read_piece(self, patience: float | None = None) -> bytes | None:
        """Return the bytes since the last call, waiting for the first of them; empty at the end.

        None if nothing came for `patience` seconds and the upstream may still be silent longer.
        """
        if self._first:
            return self._first.pop()
        try:
            if self._decoder is None:
                piece = await self._read_encoded(patience)
            else:
                piece = await self._read_decoded(self._decoder, patience)
        except GatewayError as error:
            self.error = error
            raise
        if not piece:
            self.is_complete = piece is not None
        elif self._is_in_first_line and (b"\n" in piece or b"\r" in piece):
            self._is_in_first_line = False
        return piece

    async def read_pieces(self) -> AsyncGenerator[bytes]:
        """Yield the body as it comes, and close the response."""
        try:
            while piece := await self.read_piece():
                yield piece
        finally:
            self.close()

    async def read(self) -> bytes:
        """Return the whole body, and close the response."""
        pieces, size = [], 0
        try:
            while (piece := await self.read_piece()) != b"":
                pieces.append(piece or b"")
                size += len(pieces[-1])
                self.require_room(size)
        finally:
            self.close()
        return b"".join(pieces)

    def require_room(self, size: int) -> None:
        """Return if so many bytes may be held at once."""
        if size > self.max_bytes:
            self.error = GatewayError(
                "The upstream's response is too long.",
                detail=f"its response is longer than {self.max_bytes} bytes; raise max_response_bytes if that is right",
            )
            raise self.error

    def discard(self) -> None:
        """Close the response without reading its body, because the status is enough."""
        self.is_complete = self.is_complete or self.error is None
        self.close()

    def close(self) -> None:
        """
        Release the connection: for the next request if the body was read, otherwise it is closed. Safe to call twice.
        """
        self._response.close()
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close(self)

    async def _read_decoded(self, decoder: ContentDecoder, patience: float | None) -> bytes | None:
        while (piece := next(self._decoded, None)) is None:
            encoded = await self._read_encoded(patience)
            if encoded == b"" and not decoder.is_at_end:
                raise GatewayError(_TRUNCATED, detail="the content coding of its response ends in the middle")
            if not encoded:
                return encoded
            self._decoded = decoder.feed(encoded)
        # A few bytes can decode to many pieces, and none of them is waited for.
        await asyncio.sleep(0)
        return piece

    async def _read_encoded(self, patience: float | None) -> bytes | None:
        if self._is_in_first_line and asyncio.get_running_loop().time() >= self._begin_deadline:
            raise GatewayTimeoutError(_NO_LINE)
        content = self._response.content
        try:
            piece = content.read_nowait(_READ_BYTES)
            if not piece and not content.at_eof():
                piece = await self._wait(patience)
            elif len(piece) == _READ_BYTES:
                # There may be more; other streams and probes get a turn first.
                await asyncio.sleep(0)
        except TimeoutError as error:
            if asyncio.get_running_loop().time() < self._deadline:
                return None
            has_partial_line = self._has_begun and self._is_in_first_line and self._deadline >= self._begin_deadline
            raise GatewayTimeoutError(_NO_LINE if has_partial_line else _SILENT) from error
        except CONNECTION_ERRORS as error:
            raise GatewayError(_TRUNCATED, detail=f"it closed the connection in its response: {error}") from error
        self._has_begun, self._silent_since = True, None
        return piece

    async def _wait(self, patience: float | None) -> bytes:
        now = asyncio.get_running_loop().time()
        if self._silent_since is None:
            self._silent_since = now
        until = self._deadline if patience is None else min(self._deadline, now + patience)
        async with asyncio.timeout_at(until):
            return await self._response.content.read(_READ_BYTES)

    @property
    def _deadline(self) -> float:
        timeouts = self._timeouts
        deadline = self._begin_deadline
        if self._has_begun:
            idle_deadline = (self._silent_since or self._sent_at) + timeouts.idle_seconds
            deadline = min(deadline, idle_deadline) if self._is_in_first_line else idle_deadline
        return deadline if timeouts.total_seconds is None else min(deadline, self._sent_at + timeouts.total_seconds)

    @property
    def _begin_deadline(self) -> float:
        return self._sent_at + self._timeouts.first_byte_seconds


@lru_cache(256)
def _media_type(content_type: str) -> tuple[str, str]:
    """Return a media type that can be a header of ours, and the same without parameters in lower case."""
    is_valid = content_type and content_type.isascii() and content_type.isprintable()
    media_type = content_type if is_valid else "application/octet-stream"
    return media_type, media_type.partition(";")[0].strip().lower()


class ContentDecoder:
    """Decodes a content coding: one member or frame after the other, each with a new decompressor."""

    def __init__(self, encoding: str) -> None:
        self.is_at_end = True
        """Nothing is missing; a response without a body needs no header either."""
        self._encoding = encoding
        self._decompressor: Any = None  # Any: zlib's and zstandard's

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what some more bytes decode to, in pieces of limited size.

        Raises:
            GatewayError: the bytes are not of this coding.
        """
        pieces, size = [], 0
        for start in range(0, len(data), _SLICE_BYTES):
            rest = data[start : start + _SLICE_BYTES]
            while rest:
                if self._decompressor is None or self._decompressor.eof:
                    self._decompressor = _DECOMPRESSORS[self._encoding](rest)
                try:
                    pieces.append(self._decompressor.decompress(rest))
                except (zlib.error, zstandard.ZstdError) as error:
                    raise GatewayError(
                        f"The upstream's response is not {self._encoding}, although its Content-Encoding says so.",
                        detail=f"its response is not {self._encoding}: {error}",
                    ) from error
                self.is_at_end = self._decompressor.eof
                rest = self._decompressor.unused_data if self.is_at_end else b""
                size += len(pieces[-1])
            if size >= _DECODED_BYTES:
                yield b"".join(pieces)
                pieces, size = [], 0
        if size:
            yield b"".join(pieces)


def content_decoder(encoding: str) -> ContentDecoder | None:
    """Return the decoder for a `Content-Encoding`; None if there is nothing to decode.

    Raises:
        GatewayError: the coding is not supported.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return None
    name = "gzip" if name == "x-gzip" else name
    if name not in _DECOMPRESSORS:
        raise GatewayError(
            f"The upstream's response has the content encoding {name[:40]!r}, which is not supported; "
            f"it may be {', '.join(_DECOMPRESSORS)}, or none, as requested"
        )
    return ContentDecoder(name)


def _deflate_decompressor(data: bytes) -> Any:  # Any: as in the table below
    """Return a decompressor for deflate, which servers send with and without a zlib header."""
    return zlib.decompressobj(zlib.MAX_WBITS if data[0] & 0x0F == zlib.DEFLATED else -zlib.MAX_WBITS)


# New decompressors by content coding, for bytes that begin so; Any: zlib's and zstandard's.
_DECOMPRESSORS: Mapping[str, Callable[[bytes], Any]] = {
    "gzip": lambda _: zlib.decompressobj(zlib.MAX_WBITS | 16),
    "deflate": _deflate_decompressor,
    "zstd": lambda _: zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj(),
}
