"""`s3://BUCKET/PREFIX`: Amazon S3, and every store that speaks like it.

Through botocore, in threads, and not through s3fs, which lists without checksums, puts an errno in the place of the
store's code, tries again on its own, and receives everything on one processor.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any

from appliance.config.credentials import S3Credentials, block_for
from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import MissingExtraError, StorageError
from appliance.core.threads import in_thread, opened_in_thread
from appliance.core.uri import redact
from appliance.storage.filesystems import http_errors
from appliance.storage.filesystems.base import Body, Listing, RemoteFile
from appliance.storage.filesystems.http_body import ExactBody, ResponseBody
from appliance.storage.filesystems.http_errors import AccessHint
from appliance.storage.filesystems.object_listing import (
    ObjectLocation,
    each,
    find,
    hexadecimal,
    md5_of_etag,
    only_known,
    place_of,
)
from appliance.storage.filesystems.s3_client import REMEDY, S3Client, open_client
from appliance.storage.filesystems.s3_errors import s3_faults


class S3Store:
    """A prefix of a bucket, or one object."""

    is_fixed = False

    def __init__(self, uri: str, settings: GlobalStorageConfig) -> None:
        if importlib.util.find_spec("botocore") is None:
            raise MissingExtraError("botocore", "s3", "Fetching s3://")
        self._place = parse(uri)
        self._uri = f"s3://{self._place.bucket}/{self._place.path}".rstrip("/")
        self._settings = settings
        self._block = block_for(settings.credentials.s3, "bucket", self._place.bucket) or S3Credentials()
        self._opening = asyncio.Lock()
        self._opened: S3Client | None = None
        self._is_file = False

    @property
    def credential(self) -> str:
        return self._opened.access.credential if self._opened else "AWS credentials"

    async def list(self) -> Listing:
        client = await self._client()
        with self._faults(self._uri):
            listing = await find(self._uri, self._place, lambda: self._below(client), lambda: self._alone(client))
        self._is_file = listing.is_file
        return listing

    @asynccontextmanager
    async def read(self, file: RemoteFile, start: int, end: int) -> AsyncIterator[Body]:
        client = await self._client()
        async with opened_in_thread(self._open, client, file, start, end) as body:
            yield ExactBody(f"{self._uri}: {file.name}", body, end - start)

    async def close(self) -> None:
        if self._opened:
            await in_thread(self._opened.client.close)

    async def _client(self) -> Any:  # Any: botocore makes its clients at run time, from tables
        async with self._opening:
            if self._opened is None:
                with self._faults(self._uri):
                    self._opened = await in_thread(open_client, self._block, self._settings.transfer)
            return self._opened.client

    def _open(self, client: Any, file: RemoteFile, start: int, end: int) -> ResponseBody:  # Any: as above
        what, condition = f"{self._uri}: {file.name}", {"IfMatch": file.version} if file.version else {}
        with self._faults(what):
            answer = client.get_object(
                Bucket=self._place.bucket,
                Key=self._place.key(file.name, is_file=self._is_file),
                Range=f"bytes={start}-{end - 1}",
                **condition,
            )
        # What botocore wraps around it brings a block only as a whole, and cannot be interrupted.
        body = ResponseBody(what, answer["Body"]._raw_stream)
        try:
            http_errors.check_part(what, answer.get("ContentRange"), file.size, start, end)
        except StorageError:
            body.close()
            raise
        return body

    def _faults(self, what: str) -> AbstractContextManager[None]:
        access = self._opened.access if self._opened else AccessHint(self.credential, REMEDY)
        return s3_faults(what, self._place.bucket, access)

    async def _below(self, client: Any) -> Sequence[RemoteFile]:  # Any: as above
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self._place.bucket, Prefix=self._place.prefix)
        with self._faults(self._uri):
            found = await in_thread(
                lambda: [(entry["Key"], entry["Size"]) for page in pages for entry in page.get("Contents", ())]
            )
        named = [(key, name, size) for key, size in found if (name := self._place.name(key))]
        return await each(lambda row: self._file(client, *row), named)

    async def _alone(self, client: Any) -> RemoteFile:  # Any: as above
        return await self._file(client, self._place.path, self._place.last)

    async def _file(self, client: Any, key: str, name: str, listed: int | None = None) -> RemoteFile:  # Any: as above
        """Asked one by one, because a listing has no checksums, and does not say whether an ETag is an MD5."""
        if listed == 0:
            return RemoteFile(name, 0)
        with self._faults(f"{self._uri}: {name}"):
            head = await in_thread(client.head_object, Bucket=self._place.bucket, Key=key, ChecksumMode="ENABLED")
        return RemoteFile(name, head["ContentLength"], head.get("ETag") or None, _digests(head))


def parse(uri: str) -> ObjectLocation:
    """Read an `s3://` URI; its path is the key as it is, without any escapes.

    Raises:
        StorageError: it names no bucket.
    """
    bucket, _, path = uri.partition("://")[2].partition("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]+", bucket):
        raise StorageError(f"{redact(uri)}: names no bucket; write s3://BUCKET/PREFIX")
    return place_of(bucket, path)


def _digests(head: Mapping[str, Any]) -> Mapping[str, str]:  # Any: one type for each of a dozen fields
    is_plain = head.get("ServerSideEncryption") in (None, "AES256") and "SSECustomerAlgorithm" not in head
    # A checksum of parts has their count behind it and is left out as no digest of this length.
    return only_known(
        (
            ("sha256", hexadecimal(head.get("ChecksumSHA256"), 32)),
            ("crc32c", hexadecimal(head.get("ChecksumCRC32C"), 4)),
            ("crc32", hexadecimal(head.get("ChecksumCRC32"), 4)),
            ("md5", md5_of_etag(head.get("ETag")) if is_plain else None),
        )
    )
