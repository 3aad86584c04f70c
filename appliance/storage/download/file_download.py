"""One file of a download: its bytes arrive in any order and are read back in order for its digests."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import ParamSpec, TypeVar
from uuid import uuid4

from appliance.core.disk import translate_disk_errors
from appliance.storage.download.checksums import FileDigests, crc_of, extend_crc
from appliance.storage.download.journal import ByteRange, CompletedRange, Journal, missing_ranges, version_id
from appliance.storage.download.range_reader import Write
from appliance.storage.filesystems.base import RemoteFile

P = ParamSpec("P")
T = TypeVar("T")

# The constant of <linux/fs.h>.
_SYNC_FILE_RANGE_WRITE = 2

# A block stays in the processor's cache until it is hashed.
_BLOCK_BYTES = 256 * 1024

# Bytes and journal entries that one call in the pool handles; between calls the work can be cancelled.
_BATCH_BYTES = 8 << 20
_BATCH_ENTRIES = 64


class FileDownload:
    """A file in the directory of an unfinished artifact.

    It belongs to the event loop that creates it. Its disk work runs in `pool`, except for `open_writer`, which is for
    the threads that receive bytes.
    """

    def __init__(self, file: RemoteFile, path: Path, journal: Journal, pool: Executor) -> None:
        self.file = file
        self.path = path
        self.done_bytes = 0
        self.version = version_id(file)
        self._journal = journal
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._completed: dict[int, CompletedRange] = {}
        self._grown = asyncio.Event()

    @property
    def span(self) -> ByteRange:
        """The range of the whole file."""
        return ByteRange(0, self.file.size)

    @property
    def completed(self) -> Sequence[CompletedRange]:
        """The ranges on the disk, sorted and without overlap."""
        return sorted(self._completed.values(), key=lambda completed: completed.span)

    @property
    def missing(self) -> Sequence[ByteRange]:
        """The ranges that are not on the disk."""
        return tuple(missing_ranges((completed.span for completed in self.completed), self.file.size))

    async def recover(self, recorded: Sequence[CompletedRange]) -> None:
        """Keep the recorded ranges whose checksums match the disk, and create the file if there are none."""
        await self._in_pool(self._create, keep=bool(recorded))
        in_order = iter(sorted(recorded, key=lambda completed: completed.span))
        while batch := list(islice(in_order, _BATCH_ENTRIES)):
            for completed in await self._in_pool(self._confirm, batch):
                last = next(reversed(self._completed.values()), None)
                if last is None or completed.span.start >= last.span.end:
                    self._add(completed)
        await self._in_pool(self._prepare)

    @contextmanager
    def open_writer(self, piece_bytes: int) -> Iterator[Write]:
        """Open the file for the bytes of a range; each piece of them is recorded in the journal."""
        with _open_writer(self.path, piece_bytes, self._on_written) as writer:
            yield writer.write

    @contextmanager
    def open_repair(self, repaired: list[ByteRange]) -> Iterator[Write]:
        """Open the file to replace bytes that differ; the replaced ranges are added to `repaired`."""

        def write(start: int, block: bytes) -> None:
            span = ByteRange(start, start + len(block))
            if self._read(span) != block:
                writer.write(start, block)
                writer.flush()
                repaired.append(span)

        with _open_writer(self.path, self.file.size, self._record) as writer:
            yield write

    async def digest(self) -> FileDigests:
        """Return the digests of the whole file, computed while it grows."""
        digests, position = FileDigests(self.file), 0
        while position < self.file.size:
            if (end := self._contiguous_end(position)) > position:
                await self._in_pool(self._hash, digests, ByteRange(position, end))
                position = end
            else:
                self._grown.clear()
                await self._grown.wait()
        return digests

    async def digest_again(self) -> FileDigests:
        """Return the digests of the file as it is on the disk now."""
        digests = FileDigests(self.file)
        for span in self.span.split(_BATCH_BYTES):
            await self._in_pool(self._hash, digests, span)
        return digests

    async def sync(self) -> None:
        """Sync the file to the disk."""
        await self._in_pool(self._sync)

    async def delete(self) -> None:
        """Delete the file, which invalidates its journal entries."""
        await self._in_pool(self.path.unlink, missing_ok=True)

    async def _in_pool(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._loop.run_in_executor(self._pool, lambda: work(*args, **kwargs))

    def _on_written(self, completed: CompletedRange) -> None:
        self._record(completed)
        self._loop.call_soon_threadsafe(self._add, completed)

    def _record(self, completed: CompletedRange) -> None:
        self._journal.record(self.version, completed)

    def _add(self, completed: CompletedRange) -> None:
        self._completed[completed.span.start] = completed
        self.done_bytes += completed.span.size
        self._grown.set()

    def _contiguous_end(self, position: int) -> int:
        """Return the end of the bytes without a gap from `position` on, at most about one batch of them."""
        limit = position + _BATCH_BYTES
        while position < limit and (completed := self._completed.get(position)):
            position = completed.span.end
        return position

    def _create(self, *, keep: bool) -> None:
        with translate_disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not keep:
                self.path.unlink(missing_ok=True)
            self.path.touch()

    def _prepare(self) -> None:
        """Copy the file before it is changed if a hard link shares it with another artifact, and cut it to its size."""
        with translate_disk_errors(self.path):
            facts = self.path.stat()
            is_too_long = facts.st_size > self.file.size
            if facts.st_nlink > 1 and (self.missing or is_too_long):
                copy = self.path.with_name(f".{uuid4().hex}")
                shutil.copyfile(self.path, copy)
                copy.replace(self.path)
            if is_too_long:
                os.truncate(self.path, self.file.size)

    def _confirm(self, recorded: Sequence[CompletedRange]) -> list[CompletedRange]:
        return [
            completed
            for completed in recorded
            if completed.span.end <= self.file.size
            and crc_of(self._read(block) for block in completed.span.split(_BLOCK_BYTES)) == completed.crc
        ]

    def _read(self, span: ByteRange) -> bytes:
        with translate_disk_errors(self.path), self.path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), span.size, span.start)

    def _hash(self, digests: FileDigests, span: ByteRange) -> None:
        with translate_disk_errors(self.path), self.path.open("rb", buffering=0) as file:
            for block in span.split(_BLOCK_BYTES):
                digests.update(os.pread(file.fileno(), block.size, block.start))

    def _sync(self) -> None:
        with translate_disk_errors(self.path), self.path.open("rb") as file:
            os.fsync(file)


class _RangeWriter:
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
def _open_writer(path: Path, piece_bytes: int, on_written: Callable[[CompletedRange], None]) -> Iterator[_RangeWriter]:
    """Open an existing file for writing; all written bytes are reported in the end, also after an error."""
    with translate_disk_errors(path):
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        writer = _RangeWriter(path, handle, piece_bytes, on_written)
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
