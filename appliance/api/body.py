"""Bodies of requests, read within the limits on size, time and nesting, and compression in both directions.

Source: https://www.rfc-editor.org/rfc/rfc9110#section-8.4.1; `deflate` is the format of zlib.
"""

from __future__ import annotations

import asyncio
import codecs
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.types import Receive

from appliance.api.disconnect import AnyRequest, ClientDisconnectedError, before_body, discard
from appliance.config.server import ServerConfig, ServerLimitsConfig
from appliance.core.concurrency import off_loop
from appliance.core.errors import RequestError, SlowRequestBodyError
from appliance.core.json_limits import has_more_members, is_deeper
from appliance.tensors.codec import LENGTH_HEADER

# A longer number is no length; the protocol reports it.
_MAX_DIGITS = 20

# `wbits` of zlib for gzip and zlib, and for detection of either.
_FORMATS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_EITHER = 47

# A smaller body fits in one packet anyway.
_MIN_BYTES = 1024


def require_no_form(content_type: str) -> None:
    """Raise a `RequestError` if a body of this content type is a form, and so cannot be JSON."""
    if content_type.strip().lower().startswith("multipart/"):
        raise RequestError(f"Content-Type is {content_type[:80]!r}; this route takes application/json", status=415)


def without_byte_order_mark(body: bytes) -> bytes:
    """Return a body without the mark that some Windows programs put before JSON; a form and a tensor have none."""
    return body.removeprefix(codecs.BOM_UTF8)


@dataclass(frozen=True, slots=True)
class BodyReader:
    """Reads the bodies of requests within the limits of `server`, which a reload may change."""

    server: Callable[[], ServerConfig]

    async def body(self, request: AnyRequest) -> bytes:
        """Return the decompressed body of a request; nothing else has read it.

        Raises:
            RequestError: it is not compressed as its Content-Encoding says, or that is not supported.
            SlowRequestBodyError: it did not arrive in time.
            RequestEntityTooLarge: it is larger than `max_body_bytes`, compressed or not.
        """
        coding = request.headers.get("content-encoding", "identity").strip().lower()
        body = await self._receive(request)
        if coding in {"identity", ""}:
            return body
        if coding not in _FORMATS:
            raise RequestError(f"Content-Encoding is {coding[:40]!r}; it must be gzip, deflate or identity", status=415)
        return await asyncio.to_thread(_decompress, body, self.server().max_body_bytes)

    async def json(self, request: AnyRequest) -> bytes:
        """Return the body of a request: JSON, followed by binary tensors if the headers say so."""
        async with before_body(request):
            require_no_form(request.headers.get("content-type", ""))
        body = await self.body(request)
        length = request.headers.get(LENGTH_HEADER, "")
        if not length:
            body = without_byte_order_mark(body)
        await self.require_shape(body[: int(length)] if length.isdecimal() and len(length) < _MAX_DIGITS else body)
        return body

    async def require_shape(self, body: bytes) -> None:
        """Raise a `RequestError` if JSON is nested too deeply, or has too many members."""
        await off_loop(len(body), _require_shape, body, self.server().limits)

    async def _receive(self, request: AnyRequest) -> bytes:
        """Return the body as it was sent.

        A client that is still sending does not read the response, because its connection breaks first. So a body that
        is too large is read to its end, and discarded, before it is rejected.
        """
        seconds, max_bytes = self.server().timeouts.body_seconds, self.server().max_body_bytes
        length = request.headers.get("content-length", "")
        try:
            if length.isdecimal() and int(length) > max_bytes:
                raise RequestEntityTooLarge
            async with asyncio.timeout(seconds) as bound:
                return await _read(request.receive, max_bytes)
        except RequestEntityTooLarge:
            await discard(request.receive)
            raise
        except TimeoutError as error:
            if not bound.expired():
                raise
            raise SlowRequestBodyError(
                f"The body did not come within server.timeouts.body_seconds of {seconds:g}"
            ) from error


async def _read(receive: Receive, max_bytes: int) -> bytes:
    pieces, size, has_more = [], 0, True
    while has_more:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnectedError
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > max_bytes:
            raise RequestEntityTooLarge
        has_more = message.get("more_body", False)
    return b"".join(pieces)


def _require_shape(body: bytes, limits: ServerLimitsConfig) -> None:
    if is_deeper(body, limits.json_depth):
        problem = f"is nested too deeply; server.limits.json_depth allows {limits.json_depth} levels"
    elif has_more_members(body, limits.json_members):
        problem = f"has too many members; server.limits.json_members allows {limits.json_members}"
    else:
        return
    raise RequestError(f"The body {problem}", code="invalid_json")


async def compressed(body: bytes, accept_encoding: str) -> tuple[bytes, dict[str, str]]:
    """Return the body compressed for a client with this `Accept-Encoding`, and the headers for that."""
    words = accept_encoding.lower().replace(" ", "").split(",")
    accepted = {word.split(";")[0] for word in words if not word.endswith((";q=0", ";q=0.0"))}
    coding = next((name for name in ("gzip", "deflate") if name in accepted), None)
    if coding is None or len(body) < _MIN_BYTES:
        return body, {}
    # The fastest level: such clients are near, and numbers do not shrink much more.
    content = await asyncio.to_thread(zlib.compress, body, 1, _FORMATS[coding])
    return content, {"Content-Encoding": coding, "Vary": "Accept-Encoding"}


def _decompress(body: bytes, max_bytes: int) -> bytes:
    stream = zlib.decompressobj(_EITHER)
    try:
        plain = stream.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise RequestError("The body is not compressed as its Content-Encoding says") from error
    if len(plain) > max_bytes:
        raise RequestEntityTooLarge
    if not stream.eof or stream.unused_data:
        raise RequestError("The compressed body is cut off, or has bytes after its end")
    return plain
