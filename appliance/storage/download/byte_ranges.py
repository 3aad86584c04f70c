"""Arithmetic of byte ranges: what is missing of a file, and in which pieces it is requested."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from appliance.config.storage import TransferConfig

# All requests in progress together may hold, and lose when the process is killed, one 25th of the model, so that a
# restart fetches at most 1.05 times the bytes.
_IN_PROGRESS_SHARE = 25

# As much of a response waits in the kernel at most; for longer ranges no more than this is in progress.
_RECEIVE_WINDOW_BYTES = 4 * 1024 * 1024

# Below this, requests cost more than bytes.
_MIN_CHUNK_BYTES = 64 * 1024

_MAX_PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, order=True)
class ByteRange:
    """The bytes from `start` up to `end`."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.end - self.start

    def split(self, size: int) -> Iterator[ByteRange]:
        """Yield consecutive ranges of at most `size` bytes."""
        return (ByteRange(start, min(start + size, self.end)) for start in range(self.start, self.end, size))


@dataclass(frozen=True, slots=True)
class ChunkSizes:
    """Bytes of one request, and of the pieces that are noted in the journal; a kill loses at most one piece each."""

    chunk: int
    piece: int

    @classmethod
    def of(cls, total: int, config: TransferConfig) -> ChunkSizes:
        """Return the sizes for a model of `total` bytes."""
        share = max(_MIN_CHUNK_BYTES, total // (_IN_PROGRESS_SHARE * config.parallel))
        chunk = config.chunk_bytes if share >= _RECEIVE_WINDOW_BYTES else min(share, config.chunk_bytes)
        return cls(chunk, min(chunk, _MAX_PIECE_BYTES))


def missing_ranges(completed: Iterable[ByteRange], size: int) -> Iterator[ByteRange]:
    """Yield the ranges of a file of `size` bytes that are not in `completed`, which is sorted and without overlap."""
    position = 0
    for completed_range in chain(completed, (ByteRange(size, size),)):
        if completed_range.start > position:
            yield ByteRange(position, completed_range.start)
        position = completed_range.end
