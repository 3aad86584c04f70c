"""`gs://BUCKET/PREFIX`: Google Cloud Storage, through its JSON API.

Not through gcsfs, whose import unpickles `~/.gcs_tokens` and so runs whatever is in there, and whose requests wait for
new tokens in the event loop and are tried again for half a minute.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from yarl import URL

from appliance.config.credentials import GcsCredentials, block_for
from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import StorageError, StorageUnavailableError
from appliance.core.uri import redact
from appliance.storage.filesystems import http_client, http_errors
from appliance.storage.filesystems.base import Body, Listing, RemoteFile
from appliance.storage.filesystems.gcs_auth import REMEDY, GcsToken
from appliance.storage.filesystems.http_body import part
from appliance.storage.filesystems.http_errors import AccessHint
from appliance.storage.filesystems.object_listing import ObjectLocation, find, hexadecimal, only_known, place_of

_ENDPOINT = "https://storage.googleapis.com"
_LARGEST_PAGE = 64 << 20
_FIELDS = "name,size,generation,md5Hash,crc32c,contentEncoding"


class GcsStore:
    """A prefix of a bucket, or one object."""

    is_fixed = False

    def __init__(self, uri: str, settings: GlobalStorageConfig) -> None:
        self._place = parse(uri)
        self._uri = f"gs://{self._place.bucket}/{self._place.path}".rstrip("/")
        block = block_for(settings.credentials.gcs, "bucket", self._place.bucket) or GcsCredentials()
        self._objects = f"{_endpoint(block)}/storage/v1/b/{self._place.bucket}/o"
        self._token = GcsToken(self._uri, block)
        self._web = http_client.HttpClient(settings.transfer)
        self._is_file = False

    @property
    def credential(self) -> str:
        return self._token.credential

    async def list(self) -> Listing:
        listing = await find(self._uri, self._place, self._below, self._alone)
        self._is_file = listing.is_file
        return listing

    @asynccontextmanager
    async def read(self, file: RemoteFile, start: int, end: int) -> AsyncIterator[Body]:
        what = f"{self._uri}: {file.name}"
        url = self._object(self._place.key(file.name, is_file=self._is_file))
        query = {"alt": "media"} | ({"ifGenerationMatch": file.version} if file.version else {})
        headers = await self._headers(http_client.range_header(start, end))
        async with self._web.get(what, url.with_query(query), headers, self._access) as answer:
            if answer.headers.get("X-Goog-Generation", file.version) != file.version:
                raise http_errors.changed(what)
            yield part(answer, file.size, start, end)

    async def close(self) -> None:
        await self._web.close()

    @property
    def _access(self) -> AccessHint:
        return AccessHint(self.credential, REMEDY)

    def _object(self, key: str) -> URL:
        return URL(f"{self._objects}/{quote(key, safe='')}", encoded=True)

    async def _headers(self, more: Mapping[str, str]) -> http_client.Headers:
        token = await self._token.value()
        given = {**more, **({"Authorization": f"Bearer {token}"} if token else {})}
        return http_client.only_for(URL(self._objects), given)

    async def _below(self) -> Sequence[RemoteFile]:
        files: list[RemoteFile] = []
        query = {"prefix": self._place.prefix, "fields": f"items({_FIELDS}),nextPageToken", "maxResults": "1000"}
        while True:
            page = await self._json(URL(self._objects).with_query(query))
            named = [(self._place.name(item["name"]), item) for item in page.get("items", ())]
            files += [_file(self._uri, name, item) for name, item in named if name]
            if "nextPageToken" not in page:
                return files
            query["pageToken"] = page["nextPageToken"]

    async def _alone(self) -> RemoteFile:
        item = await self._json(self._object(self._place.path).with_query({"fields": _FIELDS}))
        return _file(self._uri, self._place.last, item)

    async def _json(self, url: URL) -> Mapping[str, Any]:  # Any: JSON
        headers = await self._headers({"Accept-Encoding": "identity"})
        async with self._web.get(self._uri, url, headers, self._access) as answer:
            try:
                found = json.loads(await answer.read(_LARGEST_PAGE))
            except ValueError as error:
                raise StorageUnavailableError(f"{self._uri}: the answer is no JSON; check the endpoint") from error
        if not isinstance(found, dict):
            raise StorageUnavailableError(f"{self._uri}: the answer is no listing; check the endpoint")
        return found


def parse(uri: str) -> ObjectLocation:
    """Read a `gs://` URI; its path is the name as it is, without any escapes.

    Raises:
        StorageError: it names no bucket.
    """
    bucket, _, path = uri.partition("://")[2].partition("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]+", bucket):
        raise StorageError(f"{redact(uri)}: names no bucket; write gs://BUCKET/PREFIX")
    return place_of(bucket, path)


def _endpoint(block: GcsCredentials) -> str:
    endpoint = block.endpoint_url or os.environ.get("STORAGE_EMULATOR_HOST") or _ENDPOINT
    return (endpoint if "://" in endpoint else f"http://{endpoint}").rstrip("/")


def _file(uri: str, name: str, item: Mapping[str, Any]) -> RemoteFile:  # Any: JSON
    if encoding := item.get("contentEncoding"):
        raise StorageError(f"{uri}: {name}: stored with content encoding {encoding!r}; upload it without one")
    digests = only_known(
        (("md5", hexadecimal(item.get("md5Hash"), 16)), ("crc32c", hexadecimal(item.get("crc32c"), 4)))
    )
    return RemoteFile(name, int(item["size"]), item.get("generation"), digests)
