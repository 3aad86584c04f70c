"""`az://`, `abfs://`, `abfss://` and `https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX`: Azure Blob Storage,
through adlfs.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import aiohttp
from pydantic import ValidationError
from yarl import URL

from appliance.config.credentials import AzureCredentialsConfig, CredentialsConfig
from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import MissingExtraError, StorageError
from appliance.core.uri import redact
from appliance.storage.filesystems import errors, network
from appliance.storage.filesystems.azure_account import REMEDY, find_auth, parse
from appliance.storage.filesystems.base import NO_OPTIONS, Options, RemoteFile, known_digests
from appliance.storage.filesystems.errors import FailedResponse
from appliance.storage.filesystems.store import Content, FilesystemStore, Info, require_package

_SCOPE = "https://storage.azure.com/.default"

# https://learn.microsoft.com/rest/api/storageservices/versioning-for-the-azure-storage-services: tokens require one.
_API_VERSION = "2021-12-02"

# Arguments of adlfs that its own client would read, which is ours here, with the keys of our config.
_CREDENTIAL_OPTIONS = {
    "account_name": "account",
    "anon": "anonymous",
    **{name: name for name in ("account_key", "connection_string", "sas_token")},
    **{name: name for name in ("client_id", "client_secret", "tenant_id")},
}


class AzureStore(FilesystemStore):
    """A prefix of a container, or one blob."""

    remedy = REMEDY

    def __init__(self, uri: str, settings: GlobalStorageConfig, options: Options = NO_OPTIONS) -> None:
        require_package("adlfs", "azure", "Fetching from Azure")
        super().__init__(uri, settings, options)
        parsed = parse(uri)
        try:
            self._auth = find_auth(parsed, _credentials(options) or settings.credentials, os.environ)
        except ValidationError:
            # Its text has the values.
            raise StorageError(f"{redact(uri)}: storage.options are no credential of Azure; give all of one") from None
        except ImportError as error:
            raise MissingExtraError(error.name or "adlfs", "azure", "Fetching from Azure") from error
        self._root = f"{parsed.container}/{parsed.path}".rstrip("/")
        self._uri = f"{self._auth.account_url}/{quote(self._root)}"
        self._must_be_directory = parsed.must_be_directory or not parsed.path
        self._session: Any = None  # Any: opened with the filesystem
        self.credential = self._auth.credential

    async def _connect(self) -> Any:  # Any: adlfs has no types
        from adlfs import AzureBlobFileSystem
        from azure.core.pipeline.transport import AioHttpTransport
        from azure.storage.blob.aio import BlobServiceClient

        auth = self._auth
        connect, read = network.client_timeouts(self._settings.transfer)
        session = aiohttp.ClientSession(**await network.session_options(self._settings.transfer, auth.ca_file))
        service = BlobServiceClient(
            auth.account_url,
            credential=auth.sas or auth.tokens,
            # The session is shared with the reads of ranges.
            transport=AioHttpTransport(session=session, session_owner=False),
            retry_total=0,
            connection_timeout=connect,
            read_timeout=read,
        )

        class Files(AzureBlobFileSystem):  # type: ignore[misc] # as above
            def do_connect(self) -> None:
                # adlfs's own prefers variables of the environment to its arguments, and takes no timeouts.
                self.service_client = service

        self._session = session
        # With a key, adlfs looks for no other credential.
        arguments = {"account_key": "-", "skip_instance_cache": True, "use_listings_cache": False}
        return Files(**{**arguments, **self._options})

    async def _disconnect(self) -> None:
        await self._filesystem.service_client.close()
        await self._session.close()
        if self._auth.tokens:
            await self._auth.tokens.close()

    async def _find(self) -> Mapping[str, Info]:
        found = await super()._find()
        # For a blob, adlfs returns a list.
        return found if isinstance(found, dict) else {}

    async def _describe(self, _path: str, name: str, info: Info) -> RemoteFile:
        md5 = info["content_settings"].content_md5
        return RemoteFile(
            name, info["size"], info.get("etag"), known_digests([("md5", bytes(md5).hex() if md5 else None)])
        )

    @asynccontextmanager
    async def _open_range(self, path: str, file: RemoteFile, start: int, end: int) -> AsyncIterator[Content]:
        """Not `download_blob`, which returns a range when all of it is in memory."""
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity", "x-ms-version": _API_VERSION}
        if file.version:
            headers["If-Match"] = file.version
        if tokens := self._auth.tokens:
            headers["Authorization"] = f"Bearer {(await tokens.get_token(_SCOPE)).token}"
        url = URL(f"{self._auth.account_url}/{quote(path)}?{self._auth.sas}", encoded=True)
        async with self._session.get(url, headers=headers, allow_redirects=False) as response:
            if response.status >= 300:
                code = response.headers.get("x-ms-error-code", "")
                raise aiohttp.ClientResponseError(
                    response.request_info, (), status=response.status, message=code, headers=response.headers
                )
            content_range = response.headers.get("Content-Range")
            errors.check_content_range(self._resource(file), content_range, file.size, start, end)
            yield response.content

    def own_error(self, resource: str, _error: BaseException, response: FailedResponse | None) -> StorageError | None:
        # https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes: with status 409.
        code = response.message if response else ""
        if response and code == "PublicAccessNotPermitted":
            return errors.status_error(resource, replace(response, status=403), self)
        if code == "BlobArchived":
            return StorageError(f"{resource}: is in the archive tier; move it to another tier first")
        return None


def _credentials(options: Mapping[str, Any]) -> CredentialsConfig | None:
    given = {field: options[name] for name, field in _CREDENTIAL_OPTIONS.items() if name in options}
    return CredentialsConfig(azure=(AzureCredentialsConfig.model_validate(given),)) if given else None
