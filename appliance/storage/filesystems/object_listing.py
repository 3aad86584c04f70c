"""What object stores have in common when they are listed: keys, and no directories."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from appliance.core.errors import AccessDeniedError, ArtifactNotFoundError, StorageError
from appliance.storage.filesystems.base import Listing, RemoteFile

Item = TypeVar("Item")
Result = TypeVar("Result")

_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class ObjectLocation:
    """
    Part of a bucket: `path` is the prefix of keys up to a `/`, or the key of one object, or "" for all of the bucket.
    """

    bucket: str
    path: str
    must_be_directory: bool = False

    @property
    def prefix(self) -> str:
        """What the keys below the place begin with: whole segments, so that `model` never brings `model-v2`."""
        return f"{self.path}/" if self.path else ""

    @property
    def parent(self) -> str:
        """What the place's own key begins with before its last segment."""
        return self.path[: self.path.rfind("/") + 1]

    @property
    def last(self) -> str:
        """The last segment of the place's own key."""
        return self.path[self.path.rfind("/") + 1 :]

    def key(self, name: str, *, is_file: bool) -> str:
        """The key of a file by its name."""
        return (self.parent if is_file else self.prefix) + name

    def name(self, key: str) -> str | None:
        """The name of a key below the place; None for a marker that only says that there is a directory."""
        return None if key.endswith("/") else key.removeprefix(self.prefix)


def place_of(bucket: str, path: str) -> ObjectLocation:
    """The place of a URI's path: a `/` at the end says that it is no object."""
    return ObjectLocation(bucket, path.strip("/"), must_be_directory=path.endswith("/"))


async def find(
    uri: str,
    place: ObjectLocation,
    below: Callable[[], Awaitable[Sequence[RemoteFile]]],
    alone: Callable[[], Awaitable[RemoteFile]],
) -> Listing:
    """What lies at a place: the files `below` it, or else the one object that is there `alone`.

    Raises:
        ArtifactNotFoundError: neither.
        AccessDeniedError: listing is not allowed, and there is no such object either.
    """
    reason: StorageError = ArtifactNotFoundError(f"{uri}: nothing lies there; check the bucket and the path")
    try:
        if files := await below():
            return Listing(uri, tuple(files))
    except AccessDeniedError as denied:
        # Some may read an object and list nothing.
        reason = denied
    if not place.path or place.must_be_directory:
        raise reason
    try:
        return Listing(uri, (await alone(),), is_file=True)
    except (ArtifactNotFoundError, AccessDeniedError) as error:
        raise reason from error


async def each(ask: Callable[[Item], Awaitable[Result]], items: Iterable[Item]) -> list[Result]:
    """The answers for all items, some at once; the first error ends the others and is raised as it is."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(item: Item) -> Result:
        async with gate:
            return await ask(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def hexadecimal(encoded: str | None, length: int) -> str | None:
    """A digest of `length` bytes as hex, from base64; None where it is none, such as one over the digests of parts."""
    try:
        raw = base64.b64decode(encoded or "", validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw.hex() if len(raw) == length else None


def only_known(digests: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """The digests that there are."""
    return {algorithm: digest for algorithm, digest in digests if digest}


def md5_of_etag(etag: str | None) -> str | None:
    """The MD5 that an ETag of S3 is for an object that came in one part."""
    plain = (etag or "").strip('"')
    return plain if re.fullmatch("[0-9a-f]{32}", plain) else None
