"""Reading of ranges of a storage's files without downloading them, such as the headers of weight files."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.disk import translate_disk_errors
from appliance.core.errors import ArtifactNotFoundError, StorageError
from appliance.core.threads import in_thread
from appliance.storage.archives import is_archive
from appliance.storage.download import with_retries
from appliance.storage.filesystems.base import Body, RemoteFile, Store, event_loop_for
from appliance.storage.filesystems.registry import LocalFilesystem, RemoteFilesystem, filesystem_for
from appliance.storage.manifest import list_files
from appliance.storage.resolution import ResolvedStorage, resolve
from appliance.storage.selection import select

_BLOCK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Range:
    """The bytes from `start` up to `end` of the file `name`."""

    name: str
    start: int
    end: int

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.end - self.start


class RemoteReader(Protocol):
    """The files of one storage, read where they are."""

    @property
    def place(self) -> str:
        """Path or URI, fit for messages."""

    @property
    def files(self) -> Mapping[str, int]:
        """Bytes of each file, by its name relative to the storage."""

    @property
    def is_here(self) -> bool:
        """Whether the files are on this machine."""

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return the bytes of each range, in order."""


@contextmanager
def peek(storage: StorageConfig, settings: GlobalStorageConfig) -> Iterator[RemoteReader]:
    """Open the files of a storage for reading, in the cache if they are there."""
    resolved = resolve(storage, settings)
    uri = resolved.pinned.uri
    filesystem = filesystem_for(uri)
    if isinstance(filesystem, LocalFilesystem):
        yield _LocalReader(filesystem.find(uri, settings))
    elif path := resolved.offline_path():
        yield _LocalReader(path)
    elif settings.offline or not isinstance(filesystem, RemoteFilesystem):
        why = "storage.offline allows no connection" if settings.offline else "a wheel cannot be read in part"
        raise ArtifactNotFoundError(f"{resolved.uri}: not in the cache, and {why}; run first: appliance pull")
    else:
        store = filesystem.open(uri, settings)
        with event_loop_for(store) as runner:
            yield _StoreReader(store, runner, resolved)


class _LocalReader:
    """Files on this machine."""

    is_here = True

    def __init__(self, path: Path) -> None:
        self.place = str(path)
        self._root = path.parent if path.is_file() else path
        self.files = {name: info.size for name, info in list_files(path, read_all=False).files.items()}

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        return [self._read(part) for part in ranges]

    def _read(self, part: Range) -> bytes:
        path = self._root / part.name
        with translate_disk_errors(path), path.open("rb") as file:
            file.seek(part.start)
            return file.read(part.size)


class _StoreReader:
    """Files of a store."""

    is_here = False

    def __init__(self, store: Store, runner: asyncio.Runner, resolved: ResolvedStorage) -> None:
        self._store, self._runner, self._config = store, runner, resolved.settings.transfer
        self.place = resolved.uri
        listing = runner.run(with_retries(store.list, self.place, self._config))
        self._files: Mapping[str, RemoteFile] = {file.name: file for file in select(listing, resolved.configured).files}
        if archives := [name for name in self._files if listing.is_file and is_archive(name)]:
            raise StorageError(f"{self.place}: {archives[0]} cannot be read in part; run first: appliance pull")
        self.files = {name: file.size for name, file in self._files.items()}

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        return self._runner.run(self._read_all(ranges))

    async def _read_all(self, ranges: Sequence[Range]) -> list[bytes]:
        slots = asyncio.Semaphore(self._config.parallel)

        async def read_one(part: Range) -> bytes:
            async with slots:
                description = f"{self.place}: {part.name}"
                return await with_retries(lambda: self._read(part), description, self._config)

        return await asyncio.gather(*map(read_one, ranges))

    async def _read(self, part: Range) -> bytes:
        async with self._store.read(self._files[part.name], part.start, part.end) as body:
            try:
                return await in_thread(_read_to_end, body)
            except asyncio.CancelledError:
                body.abort()
                raise


def _read_to_end(body: Body) -> bytes:
    return b"".join(iter(lambda: body.read(_BLOCK_BYTES), b""))
