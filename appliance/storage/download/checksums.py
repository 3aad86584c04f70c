"""Digests of a file over its bytes in order, the store's own among them, and the checksum of pieces in the journal."""

from __future__ import annotations

import hashlib
import importlib.util
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import cache, reduce
from typing import Protocol

from appliance.storage.filesystems.base import RemoteFile

_Extend = Callable[[int, bytes], int]


class Digest(Protocol):
    """The interface of hashlib's objects."""

    def update(self, data: bytes, /) -> None:
        """Add bytes."""

    def hexdigest(self) -> str:
        """Return the digest of all bytes so far."""


class FileDigests:
    """The SHA-256 of a file for the manifest, and the first digest of the store that can be computed here."""

    def __init__(self, file: RemoteFile) -> None:
        self._sha256 = hashlib.sha256()
        self.algorithm = next((name for name in _ALGORITHMS if name in file.digests and _is_available(name)), None)
        self.expected = file.digests[self.algorithm] if self.algorithm else None
        self._other: Digest | None = None
        if self.algorithm not in (None, "sha256"):
            self._other = _ALGORITHMS[self.algorithm](file.size)

    def update(self, data: bytes) -> None:
        """Add the next bytes of the file."""
        self._sha256.update(data)
        if self._other is not None:
            self._other.update(data)

    @property
    def sha256(self) -> str:
        """The SHA-256 so far."""
        return self._sha256.hexdigest()

    @property
    def actual(self) -> str:
        """The digest to compare with the expected one."""
        return (self._other or self._sha256).hexdigest()

    @property
    def match(self) -> bool:
        """Whether the file is as the store lists it, or the store lists no digest."""
        return self.expected is None or self.expected == self.actual


class _Crc:
    """A CRC with hashlib's interface."""

    def __init__(self, extend: _Extend) -> None:
        self._extend = extend
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = self._extend(self._value, data)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


def _crc32(value: int, block: bytes) -> int:
    return zlib.crc32(block, value)


def _crc32c() -> Digest:
    import google_crc32c

    return _Crc(google_crc32c.extend)


def _git_blob(size: int) -> Digest:
    # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects: a header, then the contents.
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


# In order of preference: SHA-256 is computed anyway, then by cost.
_ALGORITHMS: Mapping[str, Callable[[int], Digest]] = {
    "sha256": lambda _: hashlib.sha256(),
    "crc32c": lambda _: _crc32c(),
    "crc32": lambda _: _Crc(_crc32),
    "md5": lambda _: hashlib.md5(usedforsecurity=False),
    "git-blob-sha1": _git_blob,
}


def _is_available(algorithm: str) -> bool:
    return algorithm != "crc32c" or importlib.util.find_spec("google_crc32c") is not None


def extend_crc(crc: int, block: bytes) -> int:
    """Return the checksum of the bytes with the checksum `crc` followed by a block."""
    return _fastest_crc()[1](crc, block)


def crc_of(blocks: Iterable[bytes]) -> int:
    """Return the checksum of consecutive blocks."""
    return reduce(extend_crc, blocks, 0)


def crc_algorithm() -> str:
    """Return the name of the checksum; checksums of different algorithms cannot be compared."""
    return _fastest_crc()[0]


@cache
def _fastest_crc() -> tuple[str, _Extend]:
    """Return CRC-32C with hardware support if it is available, else CRC-32."""
    if _is_available("crc32c"):
        import google_crc32c

        if google_crc32c.implementation == "c":
            return "crc32c", google_crc32c.extend
    return "crc32", _crc32
