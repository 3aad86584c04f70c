"""One file on its way: its bytes arrive in any order, and are read back in the right one for its digests."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import ParamSpec, TypeVar
from uuid import uuid4

from appliance.storage.disk_errors import disk_faults
from appliance.storage.download.checksums import Digests
from appliance.storage.download.crc import crc_of
from appliance.storage.download.journal import CompletedRange, Journal, mark
from appliance.storage.download.range_reader import Take
from appliance.storage.download.range_writer import writing
from appliance.storage.download.ranges import ByteRange, gaps
from appliance.storage.filesystems.base import RemoteFile

P = ParamSpec("P")
T = TypeVar("T")

# As much as stays in a processor's own memory until its digest is taken.
_BLOCK = 256 * 1024

# What is read without asking whether the work is still wanted.
_AT_ONCE = 8 << 20

# Claims that are looked into without asking whether the work is still wanted.
_BATCH = 64


class FileDownload:
    """A file in the directory of an unfinished artifact.

    It is made in the loop that owns it. What it does on the disk is done in `pool` but for `writing`, which is for the
    threads that receive bytes.
    """

    def __init__(self, file: RemoteFile, path: Path, journal: Journal, pool: Executor) -> None:
        self.file = file
        self.path = path
        self.held = 0
        """Bytes that are on the disk."""
        self.mark = mark(file)
        self._journal = journal
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._held: dict[int, CompletedRange] = {}
        self._grew = asyncio.Event()

    @property
    def span(self) -> ByteRange:
        """All of the file."""
        return ByteRange(0, self.file.size)

    @property
    def pieces(self) -> Sequence[CompletedRange]:
        """What is on the disk, in order and without overlap."""
        return sorted(self._held.values(), key=lambda piece: piece.span)

    @property
    def missing(self) -> Sequence[ByteRange]:
        """What is not on the disk yet."""
        return tuple(gaps((piece.span for piece in self.pieces), self.file.size))

    async def recover(self, claims: Sequence[CompletedRange]) -> None:
        """Believe of the claims what the disk confirms, and make the file where there is none."""
        await self._do(self._lay_out, bool(claims))
        in_order = iter(sorted(claims, key=lambda claim: claim.span))
        while batch := list(islice(in_order, _BATCH)):
            for piece in await self._do(self._true_of, batch):
                if not self._held or piece.span.start >= next(reversed(self._held.values())).span.end:
                    self._hold(piece)
        await self._do(self._prepare)

    @contextmanager
    def writing(self, piece: int) -> Iterator[Take]:
        """What writes bytes of the file, in the thread that has them, and says so after each `piece` of them."""
        with writing(self.path, piece, self._wrote) as work:
            yield work.take

    @contextmanager
    def mending(self, mended: list[ByteRange]) -> Iterator[Take]:
        """What replaces bytes of the file that are others, and appends where they were to `mended`."""

        def take(start: int, block: bytes) -> None:
            span = ByteRange(start, start + len(block))
            if self._read(span) != block:
                work.take(start, block)
                work.flush()
                mended.append(span)

        with writing(self.path, self.file.size, self._note) as work:
            yield take

    async def digest(self) -> Digests:
        """The digests of the whole file, taken while it grows."""
        digests, at = Digests(self.file), 0
        while at < self.file.size:
            if (end := self._held_up_to(at)) > at:
                await self._do(self._take_in, digests, ByteRange(at, end))
                at = end
            else:
                self._grew.clear()
                await self._grew.wait()
        return digests

    async def digest_anew(self) -> Digests:
        """The digests of the whole file as it now lies on the disk."""
        digests = Digests(self.file)
        for span in self.span.cut(_AT_ONCE):
            await self._do(self._take_in, digests, span)
        return digests

    async def settle(self) -> None:
        """Bring every byte safely to the disk."""
        await self._do(self._sync)

    async def forget(self) -> None:
        """Remove the file, and with it every claim that something of it is there."""
        await self._do(self.path.unlink, missing_ok=True)

    async def _do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: work(*args, **kwargs))

    def _wrote(self, piece: CompletedRange) -> None:
        self._note(piece)
        self._loop.call_soon_threadsafe(self._hold, piece)

    def _note(self, piece: CompletedRange) -> None:
        self._journal.note(self.mark, piece)

    def _hold(self, piece: CompletedRange) -> None:
        self._held[piece.span.start] = piece
        self.held += piece.span.size
        self._grew.set()

    def _held_up_to(self, at: int) -> int:
        """Where the bytes end that are there from `at` on, or the first of very many."""
        most = at + _AT_ONCE
        while at < most and (piece := self._held.get(at)):
            at = piece.span.end
        return at

    def _lay_out(self, is_begun: bool) -> None:
        with disk_faults(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not is_begun:
                self.path.unlink(missing_ok=True)
            self.path.touch()

    def _prepare(self) -> None:
        """Make the file our own if it is to be changed: by a hard link it may be another artifact's, too."""
        with disk_faults(self.path):
            facts = self.path.stat()
            is_too_long = facts.st_size > self.file.size
            if facts.st_nlink > 1 and (self.missing or is_too_long):
                own = self.path.with_name(f".{uuid4().hex}")
                shutil.copyfile(self.path, own)
                own.replace(self.path)
            if is_too_long:
                os.truncate(self.path, self.file.size)

    def _true_of(self, claims: Sequence[CompletedRange]) -> list[CompletedRange]:
        return [piece for piece in claims if piece.span.end <= self.file.size and self._is_true(piece)]

    def _is_true(self, piece: CompletedRange) -> bool:
        return crc_of(self._read(span) for span in piece.span.cut(_BLOCK)) == piece.crc

    def _read(self, span: ByteRange) -> bytes:
        with disk_faults(self.path), self.path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), span.size, span.start)

    def _take_in(self, digests: Digests, span: ByteRange) -> None:
        with disk_faults(self.path), self.path.open("rb", buffering=0) as file:
            for block in span.cut(_BLOCK):
                digests.update(os.pread(file.fileno(), block.size, block.start))

    def _sync(self) -> None:
        with disk_faults(self.path), self.path.open("rb") as file:
            os.fsync(file)
