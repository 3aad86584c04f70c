"""Content codings of answers, undone in pieces of bounded size.

Sources: RFC 9110, section 8.4.1; RFC 8878 and RFC 9659 for zstd. We ask upstreams for no coding; some use one anyway.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Protocol

import zstandard

from appliance.core.errors import GatewayError

SUPPORTED = ("gzip", "deflate", "zstd")

_PIECE_BYTES = 64 * 1024

# A block of zstd takes 4 bytes and becomes at most 128 KiB, so a slice of this size becomes at most 2 MiB.
_ZSTD_SLICE_BYTES = 64

# RFC 9659, section 3: more than this need not be supported on the web.
_ZSTD_WINDOW_BYTES = 8 * 1024 * 1024


class Decoder(Protocol):
    """Undoes one content coding."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The pieces that some more bytes become.

        Raises:
            ValueError: they are not of this coding.
        """

    @property
    def is_at_end(self) -> bool:
        """Whether nothing is missing."""


def decoder(coding: str) -> Decoder | None:
    """The decoder for a `Content-Encoding`; None where there is nothing to undo.

    Raises:
        GatewayError: the coding is not supported.
    """
    match coding.strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip":
            return _Zlib(zlib.MAX_WBITS | 16)
        case "deflate":
            return _Zlib(None)
        case "zstd":
            return _Zstd()
        case other:
            raise GatewayError(
                f"The upstream's answer has the content encoding {other[:40]!r}, which is not supported; "
                f"it may be {', '.join(SUPPORTED)}, or none as it was asked"
            )


class _Zlib:
    """Gzip, or deflate, which some send with zlib's frame and some without; `wbits` of None finds out."""

    def __init__(self, wbits: int | None) -> None:
        self._wbits = wbits
        self._object = None if wbits is None else zlib.decompressobj(wbits)
        self._has_begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._object is None or self._object.eof:
                # Gzip may have several members, one after the other.
                self._wbits = self._wbits or (zlib.MAX_WBITS if data[0] & 0x0F == zlib.DEFLATED else -zlib.MAX_WBITS)
                self._object = zlib.decompressobj(self._wbits)
            self._has_begun = True
            try:
                piece = self._object.decompress(data, _PIECE_BYTES)
            except zlib.error as error:
                raise ValueError(str(error)) from error
            data = self._object.unused_data if self._object.eof else self._object.unconsumed_tail
            if piece:
                yield piece

    @property
    def is_at_end(self) -> bool:
        # An answer without a body needs no frame either.
        return not self._has_begun or (self._object is not None and self._object.eof)


class _Zstd:
    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        self._object = self._decompressor.decompressobj()
        self._is_within = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _ZSTD_SLICE_BYTES):
            rest = data[start : start + _ZSTD_SLICE_BYTES]
            while rest:
                if self._object.eof:
                    self._object = self._decompressor.decompressobj()
                try:
                    piece = self._object.decompress(rest)
                except zstandard.ZstdError as error:
                    raise ValueError(str(error)) from error
                rest = self._object.unused_data if self._object.eof else b""
                self._is_within = not self._object.eof
                if piece:
                    yield piece

    @property
    def is_at_end(self) -> bool:
        return not self._is_within
