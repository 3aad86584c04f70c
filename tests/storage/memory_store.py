"""`memory://NAME`: a store of files in this process, registered for the tests of this folder."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from io import SEEK_END, BytesIO

from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import ArtifactChangedError, ArtifactNotFoundError
from appliance.storage.filesystems.base import Body, Listing, RemoteFile

DIRECTORIES: MutableMapping[str, MutableMapping[str, bytes]] = {}
"""Files by name, by the NAME of the URI."""


class MemoryStore:
    """One of `DIRECTORIES`, or a part of it."""

    is_fixed = False
    credential = "none"

    def __init__(self, uri: str, _settings: GlobalStorageConfig) -> None:
        self._name, _, path = uri.partition("://")[2].partition("/")
        self._path = path.rstrip("/")
        self._listed: Mapping[str, bytes] = {}

    async def list(self) -> Listing:
        files = DIRECTORIES.get(self._name, {})
        uri = f"memory://{self._name}/{self._path}".rstrip("/")
        is_file = self._path in files
        parent = self._path.rpartition("/")[0] if is_file else self._path
        prefix = f"{parent}/" if parent else ""
        names = [self._path] if is_file else [name for name in sorted(files) if name.startswith(prefix)]
        self._listed = {name.removeprefix(prefix): files[name] for name in names}
        if not self._listed:
            raise ArtifactNotFoundError(f"{uri}: nothing found")
        return Listing(uri, tuple(_describe(name, data) for name, data in self._listed.items()), is_file=is_file)

    @asynccontextmanager
    async def read(self, file: RemoteFile, start: int, end: int) -> AsyncIterator[Body]:
        data = self._listed[file.name]
        if not any(data is current for current in DIRECTORIES[self._name].values()):
            raise ArtifactChangedError(f"memory://{self._name}: {file.name}: changed during the download; try again")
        yield _Bytes(data[start:end])

    async def close(self) -> None:
        pass


class _Bytes(BytesIO):
    """A body that is complete."""

    def abort(self) -> None:
        self.seek(0, SEEK_END)


def _describe(name: str, data: bytes) -> RemoteFile:
    digest = hashlib.sha256(data).hexdigest()
    return RemoteFile(name, len(data), version=digest, digests={"sha256": digest})
