"""`az://`, `abfs://`, `abfss://` and `https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX`: Azure Blob Storage.

Azure's own library lists and authenticates; the bytes are fetched over plain HTTP. Not adlfs, which prefers
AZURE_STORAGE_CONNECTION_STRING to the account and credential it is given, sends tokens over https only, retries a
listing for minutes, and prints a traceback at exit for each of its instances.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

from yarl import URL

from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import AccessDeniedError, MissingExtraError, StorageError
from appliance.storage.filesystems import errors
from appliance.storage.filesystems.azure_account import REMEDY, find_auth, parse
from appliance.storage.filesystems.base import Body, RemoteFile, known_digests
from appliance.storage.filesystems.errors import AccessHint
from appliance.storage.filesystems.http_client import HttpClient, HttpResponse, only_for, range_header
from appliance.storage.filesystems.object_store import ObjectStore

if TYPE_CHECKING:
    from azure.storage.blob import BlobProperties
    from azure.storage.blob.aio import ContainerClient

_SCOPE = "https://storage.azure.com/.default"

# https://learn.microsoft.com/rest/api/storageservices/versioning-for-the-azure-storage-services: tokens require one.
_API_VERSION = "2021-12-02"


class AzureStore(ObjectStore):
    """A prefix of a container, or one blob."""

    def __init__(self, uri: str, settings: GlobalStorageConfig) -> None:
        parsed = parse(uri)
        try:
            self._auth = find_auth(parsed, settings.credentials, os.environ)
        except ImportError as error:
            raise MissingExtraError(error.name or "azure-storage-blob", "azure", "Fetching from Azure") from error
        bucket, path = parsed.location.bucket, parsed.location.path
        super().__init__(f"{self._auth.account_url}/{bucket}/{quote(path)}".rstrip("/"), parsed.location)
        self._settings = settings
        self._client = HttpClient(settings.transfer)
        self._stack = AsyncExitStack()
        self._opened: ContainerClient | None = None

    @property
    def credential(self) -> str:
        return self._auth.credential

    @asynccontextmanager
    async def read(self, file: RemoteFile, start: int, end: int) -> AsyncIterator[Body]:
        resource, key = self._resource(file), quote(self._key_of(file))
        url = URL(f"{self._auth.account_url}/{self._location.bucket}/{key}?{self._auth.sas}", encoded=True)
        headers = {**range_header(start, end), "x-ms-version": _API_VERSION}
        if file.version:
            headers["If-Match"] = file.version
        if tokens := self._auth.tokens:
            with self._translate_errors(resource):
                headers["Authorization"] = f"Bearer {(await tokens.get_token(_SCOPE)).token}"

        def to_error(response: HttpResponse) -> StorageError:
            return self._status_error(resource, response.status, response.headers.get("x-ms-error-code", ""))

        async with self._client.get(resource, url, only_for(url, headers), self._hint, to_error) as response:
            yield response.range_body(file.size, start, end)

    async def close(self) -> None:
        await self._stack.aclose()
        await self._client.close()

    @property
    def _hint(self) -> AccessHint:
        return AccessHint(self.credential, REMEDY)

    async def _list_prefix(self) -> Sequence[RemoteFile]:
        container = await self._container()
        with self._translate_errors(self._uri):
            blobs = container.list_blobs(name_starts_with=self._location.prefix or None, include=["metadata"])
            found = [(self._location.name_of(blob.name), blob) async for blob in blobs if not _is_directory(blob)]
        return [_to_file(self._uri, name, blob) for name, blob in found if name]

    async def _describe_object(self) -> RemoteFile:
        container = await self._container()
        with self._translate_errors(self._uri):
            blob = await container.get_blob_client(self._location.path).get_blob_properties()
        return _to_file(self._uri, self._location.name, blob)

    async def _container(self) -> ContainerClient:
        if self._opened is None:
            self._opened = await self._open_container()
        return self._opened

    async def _open_container(self) -> ContainerClient:
        try:
            from azure.storage.blob.aio import ContainerClient
        except ImportError as error:
            raise MissingExtraError("azure-storage-blob", "azure", "Fetching from Azure") from error
        auth = self._auth
        if auth.tokens:
            await self._stack.enter_async_context(auth.tokens)
        connect, read = errors.client_timeouts(self._settings.transfer)
        try:
            client = ContainerClient(
                auth.account_url,
                self._location.bucket,
                credential=auth.sas or auth.tokens,
                retry_total=0,
                connection_timeout=connect,
                read_timeout=read,
            )
        except ValueError as error:
            raise StorageError(f"{auth.account_url}: {error}; correct the address of the account") from error
        return await self._stack.enter_async_context(client)

    def _status_error(self, resource: str, status: int, code: str) -> StorageError:
        # https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes: the account allows no
        # anonymous access, with status 409.
        status = 403 if code == "PublicAccessNotPermitted" else status
        return errors.status_error(resource, status, code, self._hint)

    @contextmanager
    def _translate_errors(self, resource: str) -> Iterator[None]:
        from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError

        try:
            yield
        except ClientAuthenticationError as error:
            # Raised without a response as well, when there is no token.
            raise AccessDeniedError(
                f"{resource}: the store rejects {self.credential} ({errors.clean(error.message)}); {REMEDY}"
            ) from error
        except HttpResponseError as error:
            if not error.status_code:
                raise errors.connection_error(resource, error) from error
            code = str(getattr(error, "error_code", None) or "")
            raise self._status_error(resource, error.status_code, code) from error
        except AzureError as error:
            raise errors.connection_error(resource, error.inner_exception or error) from error


def _is_directory(blob: BlobProperties) -> bool:
    # Accounts with a hierarchical namespace list their directories this way.
    return (blob.metadata or {}).get("hdi_isfolder") == "true"


def _to_file(uri: str, name: str, blob: BlobProperties) -> RemoteFile:
    if blob.blob_tier == "Archive":
        raise StorageError(f"{uri}: {name}: is in the archive tier; move it to another tier first")
    md5 = blob.content_settings.content_md5
    # Listings have the ETag without the quotes that HTTP requires.
    etag = f'"{blob.etag.strip(chr(34))}"' if blob.etag else None
    return RemoteFile(name, blob.size, etag, known_digests([("md5", bytes(md5).hex() if md5 else None)]))
