"""
`memory://NAME`: files in this process, the plainest store there is; for tests, and as the pattern of a store.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, MutableMapping

from appliance.errors import ArtifactChangedError, ArtifactNotFoundError
from appliance.storage.section import StorageSettings
from appliance.storage.store import Listing, RemoteFile

PLACES: MutableMapping[str, MutableMapping[str, bytes]] = {}
"""Files by name, by the name of their place."""

_BLOCK = 1 << 16


class MemoryStore:
    """
    One place of `PLACES`, or one file in it.
    """

    credential = "none"

    def __init__(self, uri: str, _settings: StorageSettings) -> None:
        self._place, _, path = uri.partition("://")[2].partition("/")
        self._path = path.rstrip("/")

    async def list(self) -> Listing:
        held = PLACES.get(self._place, {})
        uri = f"memory://{self._place}/{self._path}".rstrip("/")
        if self._path in held:
            name = self._path.rpartition("/")[2]
            return Listing(uri, (_listed(name, held[self._path]),), is_file=True)
        prefix = f"{self._path}/" if self._path else ""
        files = tuple(
            _listed(name.removeprefix(prefix), data) for name, data in sorted(held.items()) if name.startswith(prefix)
        )
        if not files:
            raise ArtifactNotFoundError(f"{uri}: nothing lies there; known places are {', '.join(PLACES) or 'none'}")
        return Listing(uri, files)

    async def read(self, file: RemoteFile, start: int, end: int) -> AsyncIterator[bytes]:
        held = PLACES[self._place]
        data = held.get(self._path) or held[f"{self._path}/{file.name}".lstrip("/")]
        if _listed(file.name, data).version != file.version:
            raise ArtifactChangedError(f"memory://{self._place}: {file.name}: changed while it was fetched; try again")
        for begin in range(start, end, _BLOCK):
            yield data[begin : min(begin + _BLOCK, end)]

    async def close(self) -> None:
        pass


def _listed(name: str, data: bytes) -> RemoteFile:
    digest = hashlib.sha256(data).hexdigest()
    return RemoteFile(name, len(data), version=digest, digests={"sha256": digest})
