"""`memory://NAME`: files in this process, the plainest store there is; for tests, and as the pattern of a store."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from io import SEEK_END, BytesIO

from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import ArtifactChangedError, ArtifactNotFoundError
from appliance.storage.filesystems.base import Body, Listing, RemoteFile

PLACES: MutableMapping[str, MutableMapping[str, bytes]] = {}
"""Files by name, by the name of their place."""


class MemoryStore:
    """One place of `PLACES`, or one file in it."""

    is_fixed = False
    credential = "none"

    def __init__(self, uri: str, _settings: GlobalStorageConfig) -> None:
        self._place, _, path = uri.partition("://")[2].partition("/")
        self._path = path.rstrip("/")
        self._listed: Mapping[str, bytes] = {}

    async def list(self) -> Listing:
        held = PLACES.get(self._place, {})
        uri = f"memory://{self._place}/{self._path}".rstrip("/")
        is_file = self._path in held
        above = self._path.rpartition("/")[0] if is_file else self._path
        prefix = f"{above}/" if above else ""
        names = [self._path] if is_file else [name for name in sorted(held) if name.startswith(prefix)]
        self._listed = {name.removeprefix(prefix): held[name] for name in names}
        if not self._listed:
            raise ArtifactNotFoundError(f"{uri}: nothing lies there; known places are {', '.join(PLACES) or 'none'}")
        return Listing(uri, tuple(_describe(name, data) for name, data in self._listed.items()), is_file=is_file)

    @asynccontextmanager
    async def read(self, file: RemoteFile, start: int, end: int) -> AsyncIterator[Body]:
        data = self._listed[file.name]
        if not any(data is held for held in PLACES[self._place].values()):
            raise ArtifactChangedError(f"memory://{self._place}: {file.name}: changed while it was fetched; try again")
        yield _Bytes(data[start:end])

    async def close(self) -> None:
        pass


class _Bytes(BytesIO):
    """Bytes that are all there."""

    def abort(self) -> None:
        self.seek(0, SEEK_END)


def _describe(name: str, data: bytes) -> RemoteFile:
    digest = hashlib.sha256(data).hexdigest()
    return RemoteFile(name, len(data), version=digest, digests={"sha256": digest})
