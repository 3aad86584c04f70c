"""The checksum of pieces in the journal: the fastest there is here, since every byte goes through it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from functools import cache, reduce

Extend = Callable[[int, bytes], int]


def extend(crc: int, block: bytes) -> int:
    """The checksum of what has the checksum `crc` and a block behind it."""
    return _fastest()[1](crc, block)


def crc_of(blocks: Iterable[bytes]) -> int:
    """The checksum of some blocks, one behind the other."""
    return reduce(extend, blocks, 0)


def algorithm() -> str:
    """Its name: what was noted with one cannot be checked with the other."""
    return _fastest()[0]


@cache
def _fastest() -> tuple[str, Extend]:
    try:
        import google_crc32c
    except ImportError:
        return "crc32", lambda value, block: zlib.crc32(block, value)
    if google_crc32c.implementation != "c":
        return "crc32", lambda value, block: zlib.crc32(block, value)
    return "crc32c", google_crc32c.extend
