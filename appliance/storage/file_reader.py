"""Reading of ranges of a storage's files without downloading them, such as the headers of weight files."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.concurrency import in_thread
from appliance.core.disk import translate_disk_errors
from appliance.core.errors import ArtifactNotFoundError, StorageError
from appliance.storage.artifact import ArtifactSpec
from appliance.storage.download import with_retries
from appliance.storage.filesystems.base import Body, RemoteFile, Store, event_loop_for
from appliance.storage.filesystems.registry import LocalFilesystem, RemoteFilesystem, filesystem_for
from appliance.storage.manifest import list_files
from appliance.storage.resolution import ResolvedStorage, resolve

_BLOCK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class FileRange:
    """The bytes from `start` up to `end` of the file `name`."""

    name: str
    start: int
    end: int

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.end - self.start


class FileReader(Protocol):
    """The files of one storage, read where they are."""

    @property
    def location(self) -> str:
        """Path or URI, fit for messages."""

    @property
    def files(self) -> Mapping[str, int]:
        """Bytes of each file, by its name relative to the storage."""

    @property
    def is_local(self) -> bool:
        """Whether the files are on this machine."""

    def read(self, ranges: Sequence[FileRange]) -> list[bytes]:
        """Return the bytes of each range, in order."""


@contextmanager
def open_reader(storage: StorageConfig, settings: GlobalStorageConfig) -> Iterator[FileReader]:
    """Open the files of a storage for reading, in the cache if they are there."""
    resolved = resolve(storage, settings)
    uri = resolved.pinned.uri
    filesystem = filesystem_for(uri)
    if isinstance(filesystem, LocalFilesystem):
        yield _LocalReader(filesystem.find(resolved.pinned, settings))
    elif path := resolved.cached_path():
        yield _LocalReader(path)
    elif settings.offline or not isinstance(filesystem, RemoteFilesystem):
        why = "storage.offline allows no connection" if settings.offline else "a wheel cannot be read in part"
        raise ArtifactNotFoundError(f"{resolved.uri}: not in the cache, and {why}; run first: appliance pull")
    else:
        store = filesystem.open(resolved.pinned, settings)
        with event_loop_for(store) as runner:
            yield _StoreReader(store, runner, resolved)


class _LocalReader:
    """Files on this machine."""

    is_local = True

    def __init__(self, path: Path) -> None:
        self.location = str(path)
        self._root = path.parent if path.is_file() else path
        self.files = {name: info.size for name, info in list_files(path, read_all=False).files.items()}

    def read(self, ranges: Sequence[FileRange]) -> list[bytes]:
        return [self._read(file_range) for file_range in ranges]

    def _read(self, file_range: FileRange) -> bytes:
        path = self._root / file_range.name
        with translate_disk_errors(path), path.open("rb") as file:
            file.seek(file_range.start)
            return file.read(file_range.size)


class _StoreReader:
    """Files of a store."""

    is_local = False

    def __init__(self, store: Store, runner: asyncio.Runner, resolved: ResolvedStorage) -> None:
        self._store, self._runner, self._config = store, runner, resolved.settings.transfer
        self.location = resolved.uri
        listing = runner.run(with_retries(store.list, self.location, self._config))
        spec = ArtifactSpec.of(listing, resolved.configured)
        if spec.is_packed:
            raise StorageError(
                f"{self.location}: {spec.files[0].name} cannot be read in part; run first: appliance pull"
            )
        self._files: Mapping[str, RemoteFile] = {file.name: file for file in spec.files}
        self.files = {name: file.size for name, file in self._files.items()}

    def read(self, ranges: Sequence[FileRange]) -> list[bytes]:
        return self._runner.run(self._read_all(ranges))

    async def _read_all(self, ranges: Sequence[FileRange]) -> list[bytes]:
        slots = asyncio.Semaphore(self._config.parallel)

        async def read_one(file_range: FileRange) -> bytes:
            async with slots:
                description = f"{self.location}: {file_range.name}"
                return await with_retries(lambda: self._read(file_range), description, self._config)

        return await asyncio.gather(*map(read_one, ranges))

    async def _read(self, file_range: FileRange) -> bytes:
        async with self._store.read(self._files[file_range.name], file_range.start, file_range.end) as body:
            try:
                return await in_thread(_read_to_end, body)
            except asyncio.CancelledError:
                body.abort()
                raise


def _read_to_end(body: Body) -> bytes:
    return b"".join(iter(lambda: body.read(_BLOCK_BYTES), b""))
