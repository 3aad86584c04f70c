"""The arithmetic of byte ranges: what is missing of a file, and in which pieces it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from appliance.config.storage import TransferConfig

# What all requests together may have under way and lose when the process is killed: one 25th of the model, so that a
# restart fetches at most 1.05 times the bytes.
_SHARE_UNDER_WAY = 25

# As much of an answer waits in the kernel until it is read, at most: of a longer one no more is under way.
_WINDOW = 4 * 1024 * 1024

# Below this, requests cost more than bytes.
_SMALLEST_CHUNK = 64 * 1024

# What is written before it is noted.
_LARGEST_PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True, order=True)
class ByteRange:
    """The bytes from `start` up to `end`."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """How many they are."""
        return self.end - self.start

    def cut(self, size: int) -> Iterator[ByteRange]:
        """The span in spans of at most `size` bytes."""
        return (ByteRange(start, min(start + size, self.end)) for start in range(self.start, self.end, size))


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes that one request asks for, and bytes that are written before they are noted, which a kill costs."""

    chunk: int
    piece: int

    @classmethod
    def of(cls, total: int, limits: TransferConfig) -> Sizes:
        """The sizes for a model of `total` bytes."""
        fair = max(_SMALLEST_CHUNK, total // (_SHARE_UNDER_WAY * limits.parallel))
        chunk = limits.chunk_bytes if fair >= _WINDOW else min(fair, limits.chunk_bytes)
        return cls(chunk, min(chunk, _LARGEST_PIECE))


def gaps(held: Iterable[ByteRange], size: int) -> Iterator[ByteRange]:
    """The spans that `held`, in order and apart, leaves open in a file of `size` bytes."""
    at = 0
    for span in chain(held, (ByteRange(size, size),)):
        if span.start > at:
            yield ByteRange(at, span.start)
        at = span.end
