"""Bytes of a file on their way to the disk, written by the thread that receives them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.storage.disk_errors import disk_faults
from appliance.storage.download import writeback
from appliance.storage.download.crc import extend
from appliance.storage.download.journal import CompletedRange
from appliance.storage.download.ranges import ByteRange

Note = Callable[[CompletedRange], None]
"""
Hears of a piece that is written.
"""


class RangeWriter:
    """Blocks of an open file, one behind the other; each `piece` bytes of them are noted once they are there."""

    def __init__(self, path: Path, handle: int, piece: int, note: Note) -> None:
        self._path = path
        self._handle = handle
        self._piece = piece
        self._note = note
        self._span = ByteRange(0, 0)
        self._crc = 0

    def take(self, start: int, block: bytes) -> None:
        """Write a block, behind the one before or after all of it was noted."""
        if start != self._span.end:
            self.flush()
            self._span = ByteRange(start, start)
        with disk_faults(self._path):
            write(self._handle, start, block)
        self._span = ByteRange(self._span.start, start + len(block))
        self._crc = extend(self._crc, block)
        if self._span.size >= self._piece:
            self.flush()

    def flush(self) -> None:
        """Note what is written and was not noted."""
        if self._span.size:
            writeback.begin(self._handle, self._span)
            self._note(CompletedRange(self._span, self._crc))
        self._span, self._crc = ByteRange(self._span.end, self._span.end), 0


@contextmanager
def writing(path: Path, piece: int, note: Note) -> Iterator[RangeWriter]:
    """A file that is there already, open for writing; all that was written is noted in the end, also after a fault."""
    with disk_faults(path):
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        work = RangeWriter(path, handle, piece, note)
        try:
            yield work
        finally:
            work.flush()
    finally:
        os.close(handle)


def write(handle: int, start: int, block: bytes) -> None:
    """
    All of a block: a disk that is all but full takes its beginning, and says why not the rest when it is asked again.
    """
    done = os.pwrite(handle, block, start)
    while done < len(block):
        done += os.pwrite(handle, memoryview(block)[done:], start + done)
