"""Writing of received bytes to a file, by the thread that receives them."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from appliance.core.disk_errors import translate_disk_errors
from appliance.storage.download.byte_ranges import ByteRange
from appliance.storage.download.checksums import extend_crc
from appliance.storage.download.journal import CompletedRange

# The constant of <linux/fs.h>.
_SYNC_FILE_RANGE_WRITE = 2


class RangeWriter:
    """Writes consecutive blocks to an open file; `on_written` gets each piece of at least `piece_bytes`."""

    def __init__(self, path: Path, handle: int, piece_bytes: int, on_written: Callable[[CompletedRange], None]) -> None:
        self._path = path
        self._handle = handle
        self._piece_bytes = piece_bytes
        self._on_written = on_written
        self._span = ByteRange(0, 0)
        self._crc = 0

    def write(self, start: int, block: bytes) -> None:
        """Write a block; one that does not follow the block before it begins a new piece."""
        if start != self._span.end:
            self.flush()
            self._span = ByteRange(start, start)
        with translate_disk_errors(self._path):
            _write_all(self._handle, start, block)
        self._span = ByteRange(self._span.start, start + len(block))
        self._crc = extend_crc(self._crc, block)
        if self._span.size >= self._piece_bytes:
            self.flush()

    def flush(self) -> None:
        """Report the bytes that were written and not yet reported."""
        if self._span.size:
            _start_writeback(self._handle, self._span)
            self._on_written(CompletedRange(self._span, self._crc))
        self._span, self._crc = ByteRange(self._span.end, self._span.end), 0


@contextmanager
def open_writer(path: Path, piece_bytes: int, on_written: Callable[[CompletedRange], None]) -> Iterator[RangeWriter]:
    """Open an existing file for writing; all written bytes are reported in the end, also after an error."""
    with translate_disk_errors(path):
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        writer = RangeWriter(path, handle, piece_bytes, on_written)
        try:
            yield writer
        finally:
            writer.flush()
    finally:
        os.close(handle)


def _write_all(handle: int, start: int, block: bytes) -> None:
    """Write all of a block: a nearly full disk accepts its beginning, and reports the error at the next call."""
    done = os.pwrite(handle, block, start)
    while done < len(block):
        done += os.pwrite(handle, memoryview(block)[done:], start + done)


def _start_writeback(handle: int, span: ByteRange) -> None:
    """Let the kernel write a range to the disk while others arrive, so that the final sync is short."""
    if sync_file_range := _sync_file_range():
        sync_file_range(handle, ctypes.c_int64(span.start), ctypes.c_int64(span.size), _SYNC_FILE_RANGE_WRITE)


@cache
def _sync_file_range() -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
