"""The digests of a file, taken in one go over its bytes, and compared with the one its store lists."""

from __future__ import annotations

import hashlib
import importlib.util
import zlib
from collections.abc import Callable, Mapping
from typing import Protocol

from appliance.storage.filesystems.base import RemoteFile


class Digest(Protocol):
    """What hashlib's objects can do."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes in."""
        ...

    def hexdigest(self) -> str:
        """The digest so far."""
        ...


class Digests:
    """SHA-256 for the manifest, and beside it the first of the store's own digests that can be taken here."""

    def __init__(self, file: RemoteFile) -> None:
        self._sha256 = hashlib.sha256()
        self.algorithm = next((name for name in _ALGORITHMS if name in file.digests and _can_be_taken(name)), None)
        self.promised = file.digests[self.algorithm] if self.algorithm else None
        self._own: Digest | None = None
        if self.algorithm not in (None, "sha256"):
            self._own = _ALGORITHMS[self.algorithm](file.size)

    def update(self, data: bytes) -> None:
        """Take more bytes in."""
        self._sha256.update(data)
        if self._own is not None:
            self._own.update(data)

    @property
    def sha256(self) -> str:
        """The SHA-256 so far."""
        return self._sha256.hexdigest()

    @property
    def taken(self) -> str:
        """The digest to compare with the promised one."""
        return (self._own or self._sha256).hexdigest()

    @property
    def are_as_promised(self) -> bool:
        """What was promised came; a store that promises nothing keeps its word."""
        return self.promised is None or self.promised == self.taken


class _Crc32c:
    """CRC-32C in the manner of hashlib, at a speed that costs nothing."""

    def __init__(self) -> None:
        import google_crc32c

        self._checksum = google_crc32c.Checksum()  # type: ignore[no-untyped-call] # the package has no types

    def update(self, data: bytes, /) -> None:
        self._checksum.update(data)  # type: ignore[no-untyped-call] # the package has no types

    def hexdigest(self) -> str:
        return bytes(self._checksum.digest()).hex()  # type: ignore[no-untyped-call] # the package has no types


class _Crc32:
    """CRC-32 in the manner of hashlib."""

    def __init__(self) -> None:
        self._checksum = 0

    def update(self, data: bytes, /) -> None:
        self._checksum = zlib.crc32(data, self._checksum)

    def hexdigest(self) -> str:
        return f"{self._checksum:08x}"


def _git_blob(size: int) -> Digest:
    # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects: a header, then the contents.
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


# In order of preference: what is taken anyway, then by what it costs.
_ALGORITHMS: Mapping[str, Callable[[int], Digest]] = {
    "sha256": lambda _: hashlib.sha256(),
    "crc32c": lambda _: _Crc32c(),
    "crc32": lambda _: _Crc32(),
    "md5": lambda _: hashlib.md5(usedforsecurity=False),
    "git-blob-sha1": _git_blob,
}


def _can_be_taken(algorithm: str) -> bool:
    return algorithm != "crc32c" or importlib.util.find_spec("google_crc32c") is not None
