"""Bodies that are compressed on their way, in either direction.

Source: https://www.rfc-editor.org/rfc/rfc9110#section-8.4.1; `deflate` is the format of zlib.
"""

from __future__ import annotations

import asyncio
import zlib

from litestar.exceptions.http_exceptions import RequestEntityTooLarge

from appliance.core.errors import RequestError

# zlib's own word for the format: gzip, zlib, and either of them.
_GZIP, _ZLIB, _EITHER = 31, 15, 47

_FORMATS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _ZLIB}

# Below this a body fits in a packet anyway.
_LEAST_BYTES = 1024


async def decompressed(body: bytes, coding: str, most: int) -> bytes:
    """A body that has this `Content-Encoding`, in small letters; `most` is the size in bytes it may have then.

    Raises:
        RequestError: it is not compressed as it says, or in a way nobody here knows.
        RequestEntityTooLarge: it is larger.
    """
    if coding in {"identity", ""}:
        return body
    if coding not in _FORMATS:
        raise RequestError(f"Content-Encoding is {coding[:40]!r}; it must be gzip, deflate or identity", status=415)
    return await asyncio.to_thread(_decompressed, body, most)


async def compressed(body: bytes, accepts: str) -> tuple[bytes, dict[str, str]]:
    """A body as a client wants it that sent this `Accept-Encoding`, and the headers that say so."""
    wanted = {word.split(";")[0].strip().lower() for word in accepts.split(",") if not _is_refused(word)}
    coding = next((name for name in ("gzip", "deflate") if name in wanted), None)
    if coding is None or len(body) < _LEAST_BYTES:
        return body, {}
    made = await asyncio.to_thread(_compressed, body, _FORMATS[coding])
    return made, {"Content-Encoding": coding, "Vary": "Accept-Encoding"}


def _is_refused(word: str) -> bool:
    return word.replace(" ", "").endswith((";q=0", ";q=0.0"))


def _compressed(body: bytes, kind: int) -> bytes:
    # The fastest: the clients that ask for it are near, and numbers do not shrink much more.
    made = zlib.compressobj(level=1, wbits=kind)
    return made.compress(body) + made.flush()


def _decompressed(body: bytes, most: int) -> bytes:
    stream = zlib.decompressobj(_EITHER)
    try:
        plain = stream.decompress(body, most + 1)
    except zlib.error as error:
        raise RequestError("The body is not compressed as its Content-Encoding says") from error
    if len(plain) > most:
        raise RequestEntityTooLarge
    if not stream.eof or stream.unused_data:
        raise RequestError("The compressed body is cut off, or has bytes after its end")
    return plain
