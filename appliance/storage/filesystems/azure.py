"""`az://`, `abfs://`, `abfss://` and `https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX`: Azure Blob Storage.

Azure's own library lists and knows all credentials; the bytes come as any web server's. Not through adlfs, which
prefers AZURE_STORAGE_CONNECTION_STRING to the account and credential it is given, sends tokens over https only, tries
to list for minutes, and leaves a traceback at exit for each of its instances.
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
from appliance.storage.filesystems import http_client, http_errors
from appliance.storage.filesystems.azure_auth import REMEDY, AzureAuth, access_to
from appliance.storage.filesystems.azure_uri import canonical, parse
from appliance.storage.filesystems.base import Body, Listing, RemoteFile
from appliance.storage.filesystems.http_body import HttpResponse, part
from appliance.storage.filesystems.http_errors import AccessHint
from appliance.storage.filesystems.object_listing import find, only_known

if TYPE_CHECKING:
    from azure.storage.blob import BlobProperties
    from azure.storage.blob.aio import ContainerClient

_SCOPE = "https://storage.azure.com/.default"

# https://learn.microsoft.com/rest/api/storageservices/versioning-for-the-azure-storage-services: tokens want one.
_API_VERSION = "2021-12-02"


class AzureStore:
    """A prefix of a container, or one blob."""

    is_fixed = False

    def __init__(self, uri: str, settings: GlobalStorageConfig) -> None:
        wanted = parse(uri)
        try:
            self._azure = access_to(wanted, settings.credentials, os.environ)
        except ImportError as error:
            raise MissingExtraError(error.name or "azure-storage-blob", "azure", "Fetching from Azure") from error
        self._place = wanted.place
        self._uri = canonical(self._azure.account_url, wanted.place)
        self._settings = settings
        self._web = http_client.HttpClient(settings.transfer)
        self._stack = AsyncExitStack()
        self._opened: ContainerClient | None = None
        self._is_file = False

    @property
    def credential(self) -> str:
        return self._azure.credential

    async def list(self) -> Listing:
        listing = await find(self._uri, self._place, self._below, self._alone)
        self._is_file = listing.is_file
        return listing

    @asynccontextmanager
    async def read(self, file: RemoteFile, start: int, end: int) -> AsyncIterator[Body]:
        what = f"{self._uri}: {file.name}"
        key = quote(self._place.key(file.name, is_file=self._is_file))
        url = URL(f"{self._azure.account_url}/{self._place.bucket}/{key}?{self._azure.sas}", encoded=True)
        given = {**http_client.range_header(start, end), "x-ms-version": _API_VERSION}
        if file.version:
            given["If-Match"] = file.version
        with self._faults(what):
            given |= await self._authorization()
        headers = http_client.only_for(url, given)

        def refusal(answer: HttpResponse, _said: str) -> StorageError:
            return self._refused(what, answer.status, answer.headers.get("x-ms-error-code", ""))

        async with self._web.get(what, url, headers, self._access, refusal) as answer:
            yield part(answer, file.size, start, end)

    async def close(self) -> None:
        await self._stack.aclose()
        await self._web.close()

    @property
    def _access(self) -> AccessHint:
        return AccessHint(self.credential, REMEDY)

    async def _authorization(self) -> dict[str, str]:
        tokens = self._azure.tokens
        return {"Authorization": f"Bearer {(await tokens.get_token(_SCOPE)).token}"} if tokens else {}

    async def _container(self) -> ContainerClient:
        if self._opened is None:
            self._opened = await _open(self._azure, self._place.bucket, self._settings, self._stack)
        return self._opened

    async def _below(self) -> Sequence[RemoteFile]:
        container = await self._container()
        with self._faults(self._uri):
            blobs = container.list_blobs(name_starts_with=self._place.prefix or None, include=["metadata"])
            found = [(self._place.name(blob.name), blob) async for blob in blobs if not _is_directory(blob)]
        return [_file(self._uri, name, blob) for name, blob in found if name]

    async def _alone(self) -> RemoteFile:
        container = await self._container()
        with self._faults(self._uri):
            blob = await container.get_blob_client(self._place.path).get_blob_properties()
        return _file(self._uri, self._place.last, blob)

    def _refused(self, what: str, status: int, code: str) -> StorageError:
        # https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes: what is forbidden to strangers.
        return http_errors.refused(what, 403 if code == "PublicAccessNotPermitted" else status, code, self._access)

    @contextmanager
    def _faults(self, what: str) -> Iterator[None]:
        """Turn what Azure's libraries raise into errors of ours."""
        from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError

        try:
            yield
        except ClientAuthenticationError as error:
            # Also without any answer: when no token can be had.
            raise AccessDeniedError(
                f"{what}: the store refuses {self.credential} ({http_errors.clean(error.message)}); {REMEDY}"
            ) from error
        except HttpResponseError as error:
            if not error.status_code:
                raise http_errors.unanswered(what, error) from error
            code = str(getattr(error, "error_code", None) or "")
            raise self._refused(what, error.status_code, code) from error
        except AzureError as error:
            raise http_errors.unanswered(what, error.inner_exception or error) from error


async def _open(
    azure: AzureAuth, container: str, settings: GlobalStorageConfig, stack: AsyncExitStack
) -> ContainerClient:
    try:
        from azure.storage.blob.aio import ContainerClient
    except ImportError as error:
        raise MissingExtraError("azure-storage-blob", "azure", "Fetching from Azure") from error
    if azure.tokens:
        await stack.enter_async_context(azure.tokens)
    connect, silence = http_errors.patience(settings.transfer)
    try:
        client = ContainerClient(
            azure.account_url,
            container,
            credential=azure.sas or azure.tokens,
            retry_total=0,
            connection_timeout=connect,
            read_timeout=silence,
        )
    except ValueError as error:
        raise StorageError(f"{azure.account_url}: {error}; correct the address of the account") from error
    return await stack.enter_async_context(client)


def _is_directory(blob: BlobProperties) -> bool:
    # So do accounts with a hierarchical namespace list their directories.
    return (blob.metadata or {}).get("hdi_isfolder") == "true"


def _file(uri: str, name: str, blob: BlobProperties) -> RemoteFile:
    if blob.blob_tier == "Archive":
        raise StorageError(f"{uri}: {name}: lies in the archive tier; move it to another tier first")
    md5 = blob.content_settings.content_md5
    return RemoteFile(name, blob.size, _quoted(blob.etag), only_known([("md5", bytes(md5).hex() if md5 else None)]))


def _quoted(etag: str | None) -> str | None:
    # Listings have it without the quotes that HTTP wants.
    return f'"{etag.strip(chr(34))}"' if etag else None
