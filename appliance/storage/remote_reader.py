"""A look into the files of a storage without fetching them: their names and sizes, and ranges of their bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import ArtifactNotFoundError, StorageError
from appliance.core.threads import in_thread
from appliance.core.uri import redact
from appliance.storage.archives import is_archive
from appliance.storage.disk_errors import disk_faults
from appliance.storage.download import with_retries
from appliance.storage.file_list import contents
from appliance.storage.filesystems.base import Body, RemoteFile, Store
from appliance.storage.filesystems.registry import RemoteBackend, backend_for
from appliance.storage.materialize import as_locked, brought, is_in_place
from appliance.storage.remote_fetch import in_loop
from appliance.storage.selection import sort_out

# What is read here is small, and mostly of this size.
_BLOCK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Range:
    """The bytes from `start` up to `end` of the file `name`."""

    name: str
    start: int
    end: int

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return self.end - self.start


class RemoteReader(Protocol):
    """The files of one storage, as they are where they lie; `is_here` says that nothing need be brought."""

    @property
    def place(self) -> str:
        """Where they lie, fit for messages."""
        ...

    @property
    def files(self) -> Mapping[str, int]:
        """Bytes of each file, by its name relative to the storage."""
        ...

    @property
    def is_here(self) -> bool:
        """Whether they lie on this machine."""
        ...

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each range, in order.

        Raises:
            StorageError: they cannot be read.
        """
        ...


@contextmanager
def peek(storage: StorageConfig, settings: GlobalStorageConfig) -> Iterator[RemoteReader]:
    """Open a storage for a look; what is in the cache is looked at there.

    Raises:
        StorageError: the store does not answer, has nothing that may be loaded, or has no ranges.
    """
    wanted = as_locked(storage, settings)
    if is_in_place(wanted):
        yield _Local(backend_for(wanted.uri)(wanted, settings, lambda *_: None))
        return
    if path := brought(storage, settings):
        yield _Local(path)
        return
    scheme = backend_for(wanted.uri)
    if settings.offline or not isinstance(scheme, RemoteBackend):
        why = "storage.offline allows no connection" if settings.offline else "a wheel cannot be read in part"
        raise ArtifactNotFoundError(f"{redact(storage.uri)}: not in the cache, and {why}; run first: appliance pull")
    store = scheme.open(wanted.uri, settings)
    with in_loop(store) as runner:
        yield _Distant(store, runner, storage, settings)


class _Local:
    """Files on this machine."""

    is_here = True

    def __init__(self, path: Path) -> None:
        self.place = str(path)
        self._root = path.parent if path.is_file() else path
        self.files = {name: held.size for name, held in contents(path, deep=False).files.items()}

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        return [self._read(each) for each in ranges]

    def _read(self, wanted: Range) -> bytes:
        path = self._root / wanted.name
        with disk_faults(path), path.open("rb") as file:
            file.seek(wanted.start)
            return file.read(wanted.size)


class _Distant:
    """Files of a store."""

    is_here = False

    def __init__(
        self, store: Store, runner: asyncio.Runner, storage: StorageConfig, settings: GlobalStorageConfig
    ) -> None:
        self._store, self._runner, self._limits = store, runner, settings.transfer
        self.place = redact(storage.uri)
        listing = runner.run(with_retries(store.list, self.place, self._limits))
        self._files: Mapping[str, RemoteFile] = {file.name: file for file in sort_out(listing, storage).files}
        if archives := [name for name in self._files if listing.is_file and is_archive(name)]:
            raise StorageError(f"{self.place}: {archives[0]} cannot be read in part; run first: appliance pull")
        self.files = {name: file.size for name, file in self._files.items()}

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        return self._runner.run(self._gather(ranges))

    async def _gather(self, ranges: Sequence[Range]) -> list[bytes]:
        turns = asyncio.Semaphore(self._limits.parallel)

        async def one(wanted: Range) -> bytes:
            async with turns:
                return await with_retries(lambda: self._read(wanted), f"{self.place}: {wanted.name}", self._limits)

        return await asyncio.gather(*map(one, ranges))

    async def _read(self, wanted: Range) -> bytes:
        async with self._store.read(self._files[wanted.name], wanted.start, wanted.end) as body:
            try:
                return await in_thread(_whole, body)
            except asyncio.CancelledError:
                body.abort()
                raise


def _whole(body: Body) -> bytes:
    return b"".join(iter(lambda: body.read(_BLOCK_BYTES), b""))
