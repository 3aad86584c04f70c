"""What object stores have in common: buckets with keys, and no directories."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.core.errors import AccessDeniedError, ArtifactNotFoundError, StorageError
from appliance.core.uri import redact
from appliance.storage.filesystems.base import Listing, RemoteFile


@dataclass(frozen=True, slots=True)
class ObjectLocation:
    """A part of a bucket: `path` is a prefix of keys up to a `/`, the key of one object, or "" for the whole bucket."""

    bucket: str
    path: str
    must_be_directory: bool = False

    @classmethod
    def of(cls, bucket: str, path: str) -> ObjectLocation:
        """Return the location of a URI's path; a trailing `/` says that it is no object."""
        return cls(bucket, path.strip("/"), must_be_directory=path.endswith("/"))

    @classmethod
    def parse(cls, uri: str, bucket_pattern: str) -> ObjectLocation:
        """Parse `SCHEME://BUCKET/PREFIX`; the path is the key without any escapes."""
        scheme, _, rest = uri.partition("://")
        bucket, _, path = rest.partition("/")
        if not re.fullmatch(bucket_pattern, bucket):
            raise StorageError(f"{redact(uri)}: names no bucket; write {scheme}://BUCKET/PREFIX")
        return cls.of(bucket, path)

    def __str__(self) -> str:
        return f"{self.bucket}/{self.path}".rstrip("/")

    @property
    def prefix(self) -> str:
        """The prefix of the keys below it, in whole segments, so that `model` does not match `model-v2`."""
        return f"{self.path}/" if self.path else ""

    @property
    def parent(self) -> str:
        """The path up to its last segment."""
        return self.path[: self.path.rfind("/") + 1]

    @property
    def name(self) -> str:
        """The last segment of the path."""
        return self.path[self.path.rfind("/") + 1 :]

    def key_of(self, name: str, *, is_file: bool) -> str:
        """Return the key of a file by its name."""
        return (self.parent if is_file else self.prefix) + name

    def name_of(self, key: str) -> str | None:
        """Return the name of a key below it; None for a marker that stands for a directory."""
        return None if key.endswith("/") else key.removeprefix(self.prefix)


class ObjectStore(ABC):
    """Base of the stores with buckets: a listing of the objects below a prefix, or else of one object."""

    is_fixed = False

    def __init__(self, uri: str, location: ObjectLocation) -> None:
        self._uri = uri
        self._location = location
        self._is_file = False

    async def list(self) -> Listing:
        """Return the objects below the location, or else the object at it."""
        reason: StorageError = ArtifactNotFoundError(f"{self._uri}: nothing found; check the bucket and the path")
        try:
            if files := await self._list_prefix():
                self._is_file = False
                return Listing(self._uri, tuple(files))
        except AccessDeniedError as denied:
            # Some credentials may read an object and list nothing.
            reason = denied
        if not self._location.path or self._location.must_be_directory:
            raise reason
        try:
            file = await self._describe_object()
        except (ArtifactNotFoundError, AccessDeniedError) as error:
            raise reason from error
        self._is_file = True
        return Listing(self._uri, (file,), is_file=True)

    @abstractmethod
    async def _list_prefix(self) -> Sequence[RemoteFile]:
        """Return the objects below the location."""

    @abstractmethod
    async def _describe_object(self) -> RemoteFile:
        """Return the object at the location."""

    def _key_of(self, file: RemoteFile) -> str:
        return self._location.key_of(file.name, is_file=self._is_file)

    def _resource(self, file: RemoteFile) -> str:
        return f"{self._uri}: {file.name}"
