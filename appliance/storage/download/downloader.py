"""Fetch files by parallel byte ranges, verified, and never a byte twice that is there already."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from appliance.config.storage import TransferConfig
from appliance.storage.disk_errors import check_room, disk_faults
from appliance.storage.download import journal
from appliance.storage.download.file_download import FileDownload
from appliance.storage.download.journal import Journal
from appliance.storage.download.range_reader import RangeReader
from appliance.storage.download.ranges import ByteRange, Sizes
from appliance.storage.download.repair import mend
from appliance.storage.filesystems.base import RemoteFile, Store

# For what was written: digests release the interpreter, and are about as much work as receiving.
_THREADS = 4


class Downloader:
    """The fetch of some files of a store into the directory `target`, with a journal beside it.

    `parallel` ranges are fetched at once, and each holds one block in memory: that is all there is, however large the
    model. `done` and `total` are bytes, those of an earlier fetch included; `verified` counts the files whose
    store has a digest of them that is the same.
    `others` are names in `target` that are none of this fetch's business; everything else there is removed.
    """

    def __init__(
        self,
        store: Store,
        place: str,
        files: Sequence[RemoteFile],
        target: Path,
        limits: TransferConfig,
        *,
        others: Collection[str] = (),
    ) -> None:
        self.verified = 0
        self.total = sum(file.size for file in files)
        self._sizes = Sizes.of(self.total, limits)
        self._reader = RangeReader(store, place, limits, self._sizes.piece)
        self._others = others
        # The largest first: what is left at the end is small, and keeps all requests busy.
        self._files = sorted(files, key=lambda file: -file.size)
        self._target = target
        self._limits = limits
        self._parts: Sequence[FileDownload] = ()
        self._queue: deque[tuple[FileDownload, ByteRange]] = deque()

    @property
    def done(self) -> int:
        """Bytes that are on the disk."""
        return sum(part.held for part in self._parts)

    @property
    def fetched(self) -> int:
        """Bytes that came from the store by now, those that came twice included."""
        return self._reader.fetched

    async def run(self) -> Mapping[str, str]:
        """Bring every file, and return the SHA-256 of each by its name.

        Raises:
            StorageError: a file cannot be brought; what others have is kept for the next time.
        """
        with closing(Journal(self._target.parent / journal.NAME)) as notes, ThreadPoolExecutor(_THREADS) as pool:
            self._parts = [FileDownload(file, self._target / file.name, notes, pool) for file in self._files]
            await self._recover(notes)
            check_room(self.total - self.done, self._target)
            self._queue.extend(self._in_turn())
            return await self._fetch()

    async def _recover(self, notes: Journal) -> None:
        self._clear()
        claims = notes.claims()
        for part in self._parts:
            await part.recover(claims.get(part.mark or "", ()))
        notes.begin((part.mark, piece) for part in self._parts for piece in part.pieces)

    def _in_turn(self) -> Sequence[tuple[FileDownload, ByteRange]]:
        """What is missing: of all large files the same share at a time, as each file's digest is one thread's work, and
        small ones last, since they keep all requests busy to the end.
        """
        chunks = [(part, chunk) for part in self._parts for chunk in self._chunks(part, part.missing)]
        return sorted(chunks, key=lambda each: each[1].end / each[0].file.size)

    def _clear(self) -> None:
        """Remove what an earlier listing had and this one has not."""
        wanted = {self._target / name for name in (*self._others, *(file.name for file in self._files))}
        with disk_faults(self._target):
            for path in sorted(self._target.rglob("*"), reverse=True):
                if path.is_dir() and not path.is_symlink():
                    # What is wanted as a file may have been a directory.
                    with suppress(OSError):
                        path.rmdir()
                elif path not in wanted:
                    path.unlink()

    async def _fetch(self) -> Mapping[str, str]:
        try:
            async with asyncio.TaskGroup() as group:
                digests = [group.create_task(self._verified(part)) for part in self._parts]
                for _ in range(min(self._limits.parallel, len(self._queue))):
                    group.create_task(self._work())
        except BaseExceptionGroup as faults:
            # One is enough to say; the others are of the same cause, or of the end of everything.
            raise faults.exceptions[0] from None
        return {part.file.name: digest.result() for part, digest in zip(self._parts, digests, strict=True)}

    async def _work(self) -> None:
        while self._queue:
            part, span = self._queue.popleft()
            await self._reader.bring(part.file, span, partial(part.writing, self._sizes.piece))

    async def _verified(self, part: FileDownload) -> str:
        digests = await part.digest()
        if not digests.are_as_promised:
            digests = await mend(self._reader, part, digests, self._chunks(part, (part.span,)))
        self.verified += digests.algorithm is not None
        await part.settle()
        return digests.sha256

    def _chunks(self, part: FileDownload, spans: Sequence[ByteRange]) -> Sequence[ByteRange]:
        if not part.file.is_divisible:
            return spans
        return tuple(chunk for span in spans for chunk in span.cut(self._sizes.chunk))
