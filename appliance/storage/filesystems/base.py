"""What a remote place must offer so that its files can be fetched, resumed and verified: the one seam between schemes
and the transfer.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file as its store lists it.

    `name` is its POSIX path relative to the place, as the store says it; whoever selects files checks it.
    `version` changes whenever the contents do (ETag, generation, commit), and is None where the store has no such
    thing; a store sends it back with each range, so that a file changed midway is an error.
    `digests` are in lower-case hex, by algorithm: `sha256`, `md5`, `crc32c`, `crc32` or `git-blob-sha1`; none
    that cannot be compared with the bytes of the whole file.
    `is_divisible` is False where the store sends the file whole or not at all, so that parts of it cost all of it.
    """

    name: str
    size: int
    version: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    is_divisible: bool = True


@dataclass(frozen=True, slots=True)
class Listing:
    """All files of a place.

    `place` is its canonical URI without secrets, a revision in it resolved to what cannot move; it is part of the
    cache's key. `is_file` says that the URI names one file and no directory. `revision` is the resolved one, if any.
    """

    place: str
    files: tuple[RemoteFile, ...]
    is_file: bool = False
    revision: str | None = None


class Body(Protocol):
    """Bytes on their way, read by one thread: a loop would have only one processor for all of them."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most `size`, as soon as there are any; none at the end. It blocks.

        Raises:
            StorageError: they do not come, or are not the ones that were asked for.
        """
        ...

    def abort(self) -> None:
        """Have the `read` of another thread end soon, and bring nothing any more."""
        ...


class Store(Protocol):
    """One place, opened for one URI; used and closed in one event loop.

    It does not retry, wait or verify: the transfer does. What it raises tells the transfer what to do:
    `StorageUnavailableError` may pass and is tried again; every other `StorageError` is final, among them
    `ArtifactNotFoundError`, `AccessDeniedError`, `GatedError` and `ArtifactChangedError`.
    """

    @property
    def is_fixed(self) -> bool:
        """
        The URI names a state that never changes, such as a commit: what it led to once needs no question any more.
        """
        ...

    @property
    def credential(self) -> str:
        """
        Which credential is used and never its value, such as `AWS_ACCESS_KEY_ID from the environment`, `anonymous`.
        """
        ...

    async def list(self) -> Listing:
        """Every file below the place, zero-byte files and dotfiles included."""
        ...

    def read(self, file: RemoteFile, start: int, end: int) -> AbstractAsyncContextManager[Body]:
        """Exactly the bytes from `start` up to `end`, asked for on entering; a short answer, or other bytes, raise.

        Leaving it early closes the connection; no thread may read by then.
        """
        ...

    async def close(self) -> None:
        """Let go of every connection."""
        ...
