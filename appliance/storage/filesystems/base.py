"""The interface between a store and the download: listing, ranged reads, and traits of its files."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import structlog

log = structlog.get_logger()

# A connection that does not close must not hold up a finished download.
_CLOSE_SECONDS = 5.0


Options = Mapping[str, Any]  # Any: each filesystem has its own
"""Arguments of a filesystem, from `storage.options`."""

NO_OPTIONS: Options = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file as its store lists it.

    `name` is its POSIX path relative to the listing, as the store has it; `selection` checks it.
    `version` changes whenever the contents do (ETag, generation, commit), and is None if the store has none. It is sent
    back with each range, so that a change during the download is an error.
    `digests` are in lower-case hex, by algorithm: `sha256`, `md5`, `crc32c`, `crc32` or `git-blob-sha1`; only digests
    over the bytes of the whole file.
    `is_divisible` is False if the store ignores ranges and always sends the whole file.
    `unpack` is None for a file that is kept as it is. Otherwise it is a tar to unpack, and names the directory in it
    that is kept, "" for everything.
    """

    name: str
    size: int
    version: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    is_divisible: bool = True
    unpack: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """All files below a URI.

    `uri` is canonical and without secrets, with the branch or tag resolved to a fixed revision; it is part of the
    cache's key. `is_file` is True if the URI names one file. `revision` is the fixed revision, if there is one.
    """

    uri: str
    files: tuple[RemoteFile, ...]
    is_file: bool = False
    revision: str | None = None


class Body(Protocol):
    """The body of a response, read by one thread; an event loop would use one processor for all bodies."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes as soon as there are any, b"" at the end. It blocks.

        Raises:
            StorageError: the connection broke, or these are not the requested bytes.
        """

    def abort(self) -> None:
        """Make the `read` of another thread end soon, without data."""


class Store(Protocol):
    """The files below one URI; used and closed in one event loop.

    A store neither retries nor verifies; the download does. `StorageUnavailableError` is retried; every other
    `StorageError` is final, among them `ArtifactNotFoundError`, `AccessDeniedError`, `GatedError` and
    `ArtifactChangedError`.
    """

    @property
    def is_fixed(self) -> bool:
        """Whether the URI names a state that never changes, such as a commit; a cached one needs no request."""

    @property
    def credential(self) -> str:
        """Which credential is used, never its value: `AWS_ACCESS_KEY_ID from the environment`, `anonymous`."""

    async def list(self) -> Listing:
        """Return every file below the URI, empty files and dotfiles included."""

    def read(self, file: RemoteFile, start: int, end: int) -> AbstractAsyncContextManager[Body]:
        """Request the bytes from `start` up to `end`; a shorter or different response raises.

        Leaving the context early closes the connection; no thread may read at that point.
        """

    async def close(self) -> None:
        """Close all connections."""


def hex_digest(encoded: str | None, length: int) -> str | None:
    """Return a base64 digest of `length` bytes in hex; None for anything else, such as a digest over parts."""
    try:
        raw = base64.b64decode(encoded or "", validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw.hex() if len(raw) == length else None


def known_digests(digests: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Return the digests that are not None."""
    return {algorithm: digest for algorithm, digest in digests if digest}


@contextmanager
def event_loop_for(store: Store) -> Iterator[asyncio.Runner]:
    """Run an event loop for a store in this thread, and close the store with it."""
    with asyncio.Runner() as runner:
        try:
            yield runner
        finally:
            runner.run(_close(store))


async def _close(store: Store) -> None:
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await store.close()
    except TimeoutError:
        log.warning("store.close_timed_out", seconds=_CLOSE_SECONDS)
