"""
Fetch files by parallel byte ranges, verified, and never a byte twice that is there already.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing, suppress
from pathlib import Path

from appliance.errors import ArtifactCorruptError, StorageUnavailableError
from appliance.storage.faults import check_room, disk_faults
from appliance.storage.section import TransferSection
from appliance.storage.store import RemoteFile, Store
from appliance.storage.transfer import journal
from appliance.storage.transfer.journal import Journal, mark
from appliance.storage.transfer.mending import mend
from appliance.storage.transfer.part import Part
from appliance.storage.transfer.patience import Patience, steadily
from appliance.storage.transfer.ranges import Sizes, Span

# Writing, checksums and digests release the interpreter, and are about as much work as receiving.
_THREADS = 4


class Transfer:
    """
    The fetch of some files of a store into the directory `target`, with a journal beside it.

    `parallel` ranges are fetched at once, and each holds one piece in memory: that is all there is, however large the
    model. `done` and `total` are bytes, those of an earlier fetch included; `fetched` are the ones of this.
    `others` are names in `target` that are none of this fetch's business; everything else there is removed.
    """

    def __init__(
        self,
        store: Store,
        place: str,
        files: Sequence[RemoteFile],
        target: Path,
        limits: TransferSection,
        *,
        others: Collection[str] = (),
    ) -> None:
        self.done = 0
        self.fetched = 0
        self.total = sum(file.size for file in files)
        self._store = store
        self._place = place
        self._others = others
        # The largest first: what is left at the end is small, and keeps all requests busy.
        self._files = sorted(files, key=lambda file: -file.size)
        self._target = target
        self._limits = limits
        self._sizes = Sizes.of(self.total, limits)
        self._queue: deque[tuple[Part, Span]] = deque()

    async def run(self) -> Mapping[str, str]:
        """
        Bring every file, and return the SHA-256 of each by its name.

        Raises:
            StorageError: a file cannot be brought; what others have is kept for the next time.
        """
        with closing(Journal(self._target.parent / journal.NAME)) as notes, ThreadPoolExecutor(_THREADS) as pool:
            parts = [Part(file, self._target / file.name, notes, pool) for file in self._files]
            await self._recover(parts, notes)
            check_room(self.total - self.done, self._target)
            self._queue.extend((part, chunk) for part in parts for span in part.missing for chunk in self._chunks(span))
            return await self._fetch(parts)

    async def _recover(self, parts: Sequence[Part], notes: Journal) -> None:
        self._clear()
        claims = notes.claims()
        for part in parts:
            await part.recover(claims.get(mark(part.file), ()))
            self.done += sum(piece.span.end - piece.span.start for piece in part.pieces)
        notes.begin((part.file, piece) for part in parts for piece in part.pieces)

    def _clear(self) -> None:
        """
        Remove what an earlier listing had and this one has not.
        """
        wanted = {self._target / name for name in (*self._others, *(file.name for file in self._files))}
        with disk_faults(self._target):
            for path in sorted(self._target.rglob("*"), reverse=True):
                if path.is_dir() and not path.is_symlink():
                    # What is wanted as a file may have been a directory.
                    with suppress(OSError):
                        path.rmdir()
                elif path not in wanted:
                    path.unlink()

    async def _fetch(self, parts: Sequence[Part]) -> Mapping[str, str]:
        try:
            async with asyncio.TaskGroup() as group:
                digests = [group.create_task(self._verified(part)) for part in parts]
                for _ in range(min(self._limits.parallel, len(self._queue))):
                    group.create_task(self._work())
        except BaseExceptionGroup as faults:
            # One is enough to say; the others are of the same cause, or of the end of everything.
            raise faults.exceptions[0] from None
        return {part.file.name: digest.result() for part, digest in zip(parts, digests, strict=True)}

    async def _work(self) -> None:
        while self._queue:
            part, span = self._queue.popleft()
            at = span.start
            async for data in self._pieces(part.file, span):
                await part.put(at, data)
                at += len(data)
                self.done += len(data)
                self.fetched += len(data)

    async def _verified(self, part: Part) -> str:
        digests = await part.digest()
        if not digests.are_as_promised:
            digests = await mend(self._what(part.file), part, digests, self._chunks(part.span), self._pieces)
        await part.settle()
        return digests.sha256

    def _what(self, file: RemoteFile) -> str:
        return f"{self._place}: {file.name}"

    def _chunks(self, span: Span) -> Sequence[Span]:
        return tuple(span.cut(self._sizes.chunk))

    async def _pieces(self, file: RemoteFile, span: Span) -> AsyncGenerator[bytearray]:
        """
        All bytes of a span in pieces; a request that breaks is made again from its last byte on.
        """
        at, patience = span.start, Patience(self._limits)
        while at < span.end:
            try:
                async with aclosing(self._gathered(file, Span(at, span.end))) as pieces:
                    async for piece in pieces:
                        at += len(piece)
                        patience.renew()
                        yield piece
                if at < span.end:
                    raise StorageUnavailableError(f"{self._what(file)}: the store ended its answer at byte {at:,}")
            except StorageUnavailableError as error:
                await patience.pause(error)

    async def _gathered(self, file: RemoteFile, span: Span) -> AsyncGenerator[bytearray]:
        held, left = bytearray(), span.end - span.start
        try:
            blocks = self._store.read(file, span.start, span.end)
            async with aclosing(steadily(blocks, self._what(file), self._limits)) as answer:
                async for block in answer:
                    held += block
                    left -= len(block)
                    if left < 0:
                        raise ArtifactCorruptError(
                            f"{self._what(file)}: the store sent more bytes than it was asked for"
                        )
                    if len(held) >= self._sizes.piece:
                        yield held
                        held = bytearray()
        except StorageUnavailableError:
            # What came before the fault is as good as the rest.
            if held:
                yield held
            raise
        if held:
            yield held
