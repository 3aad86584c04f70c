"""`gs://BUCKET/PREFIX`: Google Cloud Storage, through its JSON API.

Not gcsfs, whose import unpickles `~/.gcs_tokens` and so runs whatever is in there, and whose requests wait for new
tokens in the event loop and are retried for half a minute.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from yarl import URL

from appliance.config.credentials import GcsCredentialsConfig, block_for, value_of
from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import AccessDeniedError, MissingExtraError, StorageError, StorageUnavailableError
from appliance.storage.filesystems import errors
from appliance.storage.filesystems.base import Body, RemoteFile, hex_digest, known_digests
from appliance.storage.filesystems.errors import AccessHint
from appliance.storage.filesystems.http_client import HeadersFor, HttpClient, only_for, range_header
from appliance.storage.filesystems.object_store import ObjectLocation, ObjectStore

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

_BUCKET = r"[a-z0-9][a-z0-9._-]+"
_ENDPOINT = "https://storage.googleapis.com"
_SCOPES = ("https://www.googleapis.com/auth/devstorage.read_only",)
_REMEDY = "set GOOGLE_APPLICATION_CREDENTIALS or storage.credentials.gcs to valid credentials"
_MAX_PAGE_BYTES = 64 << 20
_FIELDS = "name,size,generation,md5Hash,crc32c,contentEncoding"


class GcsStore(ObjectStore):
    """A prefix of a bucket, or one object."""

    def __init__(self, uri: str, settings: GlobalStorageConfig) -> None:
        location = ObjectLocation.parse(uri, _BUCKET)
        super().__init__(f"gs://{location}", location)
        block = block_for(settings.credentials.gcs, "bucket", location.bucket) or GcsCredentialsConfig()
        self._objects = f"{_endpoint(block)}/storage/v1/b/{location.bucket}/o"
        self._token = _GcsToken(self._uri, block)
        self._client = HttpClient(settings.transfer)

    @property
    def credential(self) -> str:
        return self._token.credential

    @asynccontextmanager
    async def read(self, file: RemoteFile, start: int, end: int) -> AsyncIterator[Body]:
        resource = self._resource(file)
        query = {"alt": "media"} | ({"ifGenerationMatch": file.version} if file.version else {})
        url = self._object(self._key_of(file)).with_query(query)
        headers = await self._headers(range_header(start, end))
        async with self._client.get(resource, url, headers, self._hint) as response:
            if response.headers.get("X-Goog-Generation", file.version) != file.version:
                raise errors.changed_error(resource)
            yield response.range_body(file.size, start, end)

    async def close(self) -> None:
        await self._client.close()

    @property
    def _hint(self) -> AccessHint:
        return AccessHint(self.credential, _REMEDY)

    def _object(self, key: str) -> URL:
        return URL(f"{self._objects}/{quote(key, safe='')}", encoded=True)

    async def _headers(self, more: Mapping[str, str]) -> HeadersFor:
        token = await self._token.value()
        headers = {**more, **({"Authorization": f"Bearer {token}"} if token else {})}
        return only_for(URL(self._objects), headers)

    async def _list_prefix(self) -> Sequence[RemoteFile]:
        files: list[RemoteFile] = []
        query = {"prefix": self._location.prefix, "fields": f"items({_FIELDS}),nextPageToken", "maxResults": "1000"}
        while True:
            page = await self._json(URL(self._objects).with_query(query))
            named = [(self._location.name_of(item["name"]), item) for item in page.get("items", ())]
            files += [_to_file(self._uri, name, item) for name, item in named if name]
            if "nextPageToken" not in page:
                return files
            query["pageToken"] = page["nextPageToken"]

    async def _describe_object(self) -> RemoteFile:
        item = await self._json(self._object(self._location.path).with_query({"fields": _FIELDS}))
        return _to_file(self._uri, self._location.name, item)

    async def _json(self, url: URL) -> Mapping[str, Any]:  # Any: JSON
        headers = await self._headers({"Accept-Encoding": "identity"})
        async with self._client.get(self._uri, url, headers, self._hint) as response:
            try:
                found = json.loads(await response.read(_MAX_PAGE_BYTES))
            except ValueError as error:
                raise StorageUnavailableError(f"{self._uri}: the response is no JSON; check the endpoint") from error
        if not isinstance(found, dict):
            raise StorageUnavailableError(f"{self._uri}: the response is no listing; check the endpoint")
        return found


def _endpoint(block: GcsCredentialsConfig) -> str:
    endpoint = block.endpoint_url or os.environ.get("STORAGE_EMULATOR_HOST") or _ENDPOINT
    return (endpoint if "://" in endpoint else f"http://{endpoint}").rstrip("/")


def _to_file(uri: str, name: str, item: Mapping[str, Any]) -> RemoteFile:  # Any: JSON
    if encoding := item.get("contentEncoding"):
        raise StorageError(f"{uri}: {name}: stored with content encoding {encoding!r}; upload it without one")
    digests = known_digests(
        (("md5", hex_digest(item.get("md5Hash"), 16)), ("crc32c", hex_digest(item.get("crc32c"), 4)))
    )
    return RemoteFile(name, int(item["size"]), item.get("generation"), digests)


class _GcsToken:
    """The access token of a credential, refreshed when it expires; None for an anonymous client."""

    def __init__(self, resource: str, block: GcsCredentialsConfig) -> None:
        self.credential = "Google credentials"
        self._resource = resource
        self._block = block
        self._lock = asyncio.Lock()
        self._is_loaded = False
        self._credentials: Credentials | None = None

    async def value(self) -> str | None:
        """Return the token to send now."""
        async with self._lock:
            if not self._is_loaded:
                # Reads files, and may ask the metadata server of the machine.
                self._credentials = await asyncio.to_thread(self._load)
                self._is_loaded = True
            if self._credentials and not self._credentials.valid:
                await asyncio.to_thread(self._refresh, self._credentials)
            return self._credentials.token if self._credentials else None

    def _load(self) -> Credentials | None:
        block = self._block
        is_emulator = bool(block.endpoint_url or os.environ.get("STORAGE_EMULATOR_HOST"))
        if block.anonymous or (is_emulator and not (block.key or block.key_file)):
            self.credential = "anonymous"
            return None
        try:
            from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
        except ImportError as error:
            raise MissingExtraError("google-auth", "gcs", "Fetching gs:// with credentials") from error
        is_configured = bool(block.key or block.key_file or os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"))
        try:
            self.credential, found = _find_credentials(block)
        except (ValueError, OSError, GoogleAuthError) as error:
            if isinstance(error, DefaultCredentialsError) and not is_configured:
                self.credential = "anonymous, as no Google credentials are set up"
                return None
            raise AccessDeniedError(f"{self._resource}: {errors.clean(str(error))}; {_REMEDY}") from error
        return found

    def _refresh(self, credentials: Credentials) -> None:
        from google.auth.exceptions import GoogleAuthError, TransportError
        from google.auth.transport.requests import Request

        try:
            credentials.refresh(Request())  # type: ignore[no-untyped-call] # google-auth has none here
        except TransportError as error:
            message = errors.clean(str(error))
            raise StorageUnavailableError(f"{self._resource}: no token: {message}; try again") from error
        except GoogleAuthError as error:
            kind = StorageUnavailableError if error.retryable else AccessDeniedError
            message = errors.clean(str(error))
            raise kind(f"{self._resource}: {self.credential}: {message}; {_REMEDY}") from error


def _find_credentials(block: GcsCredentialsConfig) -> tuple[str, Credentials]:
    """Return credentials, and the name of their source."""
    import google.auth

    if block.key:
        return "key of storage.credentials.gcs", _parse_key(value_of(block.key) or "")
    if block.key_file:
        return "key_file of storage.credentials.gcs", _parse_key(block.key_file.expanduser().read_text())
    found, _ = google.auth.default(scopes=_SCOPES)
    has_variable = "GOOGLE_APPLICATION_CREDENTIALS" in os.environ
    return "GOOGLE_APPLICATION_CREDENTIALS" if has_variable else "Google's default credentials", found


def _parse_key(text: str) -> Credentials:
    """Return the credentials of a JSON key; only of types that do not run a program to get a token."""
    from google.auth import identity_pool
    from google.oauth2 import credentials, service_account

    # google-auth has no types for these.
    types: Mapping[str, Callable[..., Credentials]] = {
        "service_account": service_account.Credentials.from_service_account_info,
        "external_account": identity_pool.Credentials.from_info,
        "authorized_user": credentials.Credentials.from_authorized_user_info,
    }
    info = json.loads(text)
    kind = str(info.get("type") if isinstance(info, dict) else None)
    if kind not in types:
        raise ValueError(f"is of type {kind!r}; known are {', '.join(types)}")
    return types[kind](info, scopes=_SCOPES)
