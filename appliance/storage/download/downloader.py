"""The download of an artifact's files: parallel ranges, verified, and never a byte twice that is already there."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from appliance.config.storage import TransferConfig
from appliance.core.disk import require_free_space, translate_disk_errors
from appliance.core.errors import ArtifactCorruptError
from appliance.storage.download.checksums import FileDigests
from appliance.storage.download.file_download import FileDownload
from appliance.storage.download.journal import JOURNAL, ByteRange, Journal
from appliance.storage.download.range_reader import RangeReader
from appliance.storage.filesystems.base import RemoteFile, Store

log = structlog.get_logger()

# Hashing releases the GIL and costs about as much as receiving.
_HASH_THREADS = 4


# All requests in progress together may hold, and lose when the process is killed, one 25th of the model, so that a
# restart fetches at most 1.05 times the bytes.
_IN_PROGRESS_SHARE = 25

# As much of a response waits in the kernel at most; for longer ranges no more than this is in progress.
_RECEIVE_WINDOW_BYTES = 4 * 1024 * 1024

# A small model is fetched in fewer requests at once, so that each is worth its cost and its part of a rate limit.
_WORTHWHILE_CHUNK_BYTES = 256 * 1024
_MIN_PARALLEL = 2

# Below this, requests cost more than bytes.
_MIN_CHUNK_BYTES = 64 * 1024

_MAX_PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ChunkSizes:
    """Requests at once, bytes of each, and of the pieces that are noted in the journal; a kill loses at most one piece
    of each request.
    """

    parallel: int
    chunk: int
    piece: int

    @classmethod
    def of(cls, total: int, config: TransferConfig) -> ChunkSizes:
        """Return the sizes for a model of `total` bytes."""
        in_progress = total // _IN_PROGRESS_SHARE
        parallel = min(config.parallel, max(_MIN_PARALLEL, in_progress // _WORTHWHILE_CHUNK_BYTES))
        share = max(_MIN_CHUNK_BYTES, in_progress // parallel)
        chunk = config.chunk_bytes if share >= _RECEIVE_WINDOW_BYTES else min(share, config.chunk_bytes)
        return cls(parallel, chunk, min(chunk, _MAX_PIECE_BYTES))


class Downloader:
    """Downloads files of a store into the directory `target`, with a journal beside it.

    At most `config.parallel` ranges are requested at once, each with one block in memory, so memory does not grow with
    the model. `total` and `done` are bytes, those of earlier attempts included; `verified` counts the files whose
    digest the store lists. Everything in `target` that is neither in `files` nor in `keep` is removed.
    """

    def __init__(
        self,
        store: Store,
        uri: str,
        files: Sequence[RemoteFile],
        target: Path,
        config: TransferConfig,
        *,
        keep: Collection[str] = (),
    ) -> None:
        self.verified = 0
        self.total = sum(file.size for file in files)
        self._sizes = ChunkSizes.of(self.total, config)
        self._reader = RangeReader(store, uri, config, self._sizes.piece)
        self._keep = keep
        # The largest first: the small files at the end keep all requests busy.
        self._files = sorted(files, key=lambda file: -file.size)
        self._target = target
        self._config = config
        self._downloads: Sequence[FileDownload] = ()
        self._queue: deque[tuple[FileDownload, ByteRange]] = deque()

    @property
    def done(self) -> int:
        """Bytes on the disk."""
        return sum(download.done_bytes for download in self._downloads)

    @property
    def fetched(self) -> int:
        """Bytes that came from the store, those that came twice included."""
        return self._reader.fetched

    async def run(self) -> Mapping[str, str]:
        """Download every file, and return the SHA-256 of each by name."""
        with closing(Journal(self._target.parent / JOURNAL)) as journal, ThreadPoolExecutor(_HASH_THREADS) as pool:
            self._downloads = [FileDownload(file, self._target / file.name, journal, pool) for file in self._files]
            await self._recover(journal)
            require_free_space(self.total - self.done, self._target)
            self._queue.extend(self._schedule())
            return await self._fetch()

    async def _recover(self, journal: Journal) -> None:
        self._remove_others()
        recorded = journal.completed()
        for download in self._downloads:
            await download.recover(recorded.get(download.version or "", ()))
        journal.restart(
            (download.version, completed) for download in self._downloads for completed in download.completed
        )

    def _remove_others(self) -> None:
        """Remove what an earlier listing had and this one has not."""
        expected = {self._target / name for name in (*self._keep, *(file.name for file in self._files))}
        with translate_disk_errors(self._target):
            for path in sorted(self._target.rglob("*"), reverse=True):
                if path.is_dir() and not path.is_symlink():
                    # A directory may have become a file; one that is not empty is still needed.
                    with suppress(OSError):
                        path.rmdir()
                elif path not in expected:
                    path.unlink()

    def _schedule(self) -> Sequence[tuple[FileDownload, ByteRange]]:
        """Return the missing ranges in order of their relative position in the file.

        Large files advance together, because each is hashed by one thread; small files come last.
        """
        chunks = [
            (download, chunk) for download in self._downloads for chunk in self._split(download, download.missing)
        ]
        return sorted(chunks, key=lambda item: item[1].end / item[0].file.size)

    def _split(self, download: FileDownload, spans: Sequence[ByteRange]) -> Sequence[ByteRange]:
        if not download.file.is_divisible:
            return spans
        return tuple(chunk for span in spans for chunk in span.split(self._sizes.chunk))

    async def _fetch(self) -> Mapping[str, str]:
        try:
            async with asyncio.TaskGroup() as group:
                digests = [group.create_task(self._verify(download)) for download in self._downloads]
                for _ in range(min(self._sizes.parallel, len(self._queue))):
                    group.create_task(self._work())
        except BaseExceptionGroup as errors:
            # The first is enough: the others have the same cause, or come from the cancellation.
            raise errors.exceptions[0] from None
        return {download.file.name: task.result() for download, task in zip(self._downloads, digests, strict=True)}

    async def _work(self) -> None:
        while self._queue:
            download, span = self._queue.popleft()
            await self._reader.copy(download.file, span, partial(download.open_writer, self._sizes.piece))

    async def _verify(self, download: FileDownload) -> str:
        digests = await download.digest()
        if not digests.match:
            digests = await self._repair(download, digests)
        self.verified += digests.algorithm is not None
        await download.sync()
        return digests.sha256

    async def _repair(self, download: FileDownload, found: FileDigests) -> FileDigests:
        """Read a corrupt file again from the store, and replace what differs until its digest matches."""
        file, description = download.file, self._reader.describe(download.file)
        log.warning("artifact.corrupted", file=description, algorithm=found.algorithm)
        for chunk in self._split(download, (download.span,)):
            repaired: list[ByteRange] = []
            await self._reader.copy(file, chunk, partial(download.open_repair, repaired))
            if repaired:
                found = await download.digest_again()
                if found.match:
                    log.info("artifact.repaired", file=description, start=chunk.start, end=chunk.end)
                    return found
        await download.delete()
        raise ArtifactCorruptError(
            f"{description}: {found.algorithm} is {found.actual}, and the store lists {found.expected}, "
            "also when it is read again; ask the operator of the store, or of a proxy in front of it"
        )
