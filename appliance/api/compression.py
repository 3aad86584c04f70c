"""Compression of request and response bodies.

Source: https://www.rfc-editor.org/rfc/rfc9110#section-8.4.1; `deflate` is the format of zlib.
"""

from __future__ import annotations

import asyncio
import zlib

from litestar.exceptions.http_exceptions import RequestEntityTooLarge

from appliance.core.errors import RequestError

# `wbits` of zlib for gzip, zlib, and detection of either.
_GZIP, _ZLIB, _EITHER = 31, 15, 47

_FORMATS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _ZLIB}

# A smaller body fits in one packet anyway.
_MIN_BYTES = 1024


async def decompressed(body: bytes, coding: str, max_bytes: int) -> bytes:
    """Return the decompressed body; `coding` is its `Content-Encoding` in lower case, `max_bytes` its largest size.

    Raises:
        RequestError: it is not compressed as `coding` says, or that is not supported.
        RequestEntityTooLarge: it is larger than `max_bytes`.
    """
    if coding in {"identity", ""}:
        return body
    if coding not in _FORMATS:
        raise RequestError(f"Content-Encoding is {coding[:40]!r}; it must be gzip, deflate or identity", status=415)
    return await asyncio.to_thread(_decompressed, body, max_bytes)


async def compressed(body: bytes, accept_encoding: str) -> tuple[bytes, dict[str, str]]:
    """Return the body compressed for a client with this `Accept-Encoding`, and the headers for that."""
    accepted = {word.split(";")[0].strip().lower() for word in accept_encoding.split(",") if not _is_excluded(word)}
    coding = next((name for name in ("gzip", "deflate") if name in accepted), None)
    if coding is None or len(body) < _MIN_BYTES:
        return body, {}
    content = await asyncio.to_thread(_compressed, body, _FORMATS[coding])
    return content, {"Content-Encoding": coding, "Vary": "Accept-Encoding"}


def _is_excluded(word: str) -> bool:
    return word.replace(" ", "").endswith((";q=0", ";q=0.0"))


def _compressed(body: bytes, kind: int) -> bytes:
    # The fastest level: such clients are near, and numbers do not shrink much more.
    compressor = zlib.compressobj(level=1, wbits=kind)
    return compressor.compress(body) + compressor.flush()


def _decompressed(body: bytes, max_bytes: int) -> bytes:
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
