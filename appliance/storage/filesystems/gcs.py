"""`gs://BUCKET/PREFIX`: Google Cloud Storage, through gcsfs."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yarl import URL

from appliance.config.credentials import GcsCredentialsConfig, block_for, value_of
from appliance.config.storage import GlobalStorageConfig
from appliance.core.concurrency import in_thread
from appliance.core.errors import AccessDeniedError, StorageError, StorageUnavailableError
from appliance.storage.filesystems import errors, network
from appliance.storage.filesystems.base import NO_OPTIONS, Options, RemoteFile, hex_digest, known_digests
from appliance.storage.filesystems.errors import FailedResponse
from appliance.storage.filesystems.store import Content, FilesystemStore, Info, bucket_and_path, require_package

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

_BUCKET = r"[a-z0-9][a-z0-9._-]+"
_ENDPOINT = "https://storage.googleapis.com"
_SCOPES = ("https://www.googleapis.com/auth/devstorage.read_only",)


class GcsStore(FilesystemStore):
    """A prefix of a bucket, or one object."""

    remedy = "set GOOGLE_APPLICATION_CREDENTIALS or storage.credentials.gcs to valid credentials"

    def __init__(self, uri: str, settings: GlobalStorageConfig, options: Options = NO_OPTIONS) -> None:
        require_package("gcsfs", "gcs", "Fetching gs://")
        super().__init__(uri, settings, options)
        bucket, path = bucket_and_path(uri, _BUCKET)
        self._root = f"{bucket}/{path}".rstrip("/")
        self._uri = f"gs://{self._root}"
        self._must_be_directory = self._must_be_directory or not path
        self._block = block_for(settings.credentials.gcs, "bucket", bucket) or GcsCredentialsConfig()
        self._refreshing = asyncio.Lock()
        self._credentials: Credentials | None = None
        self._bearer: Any = "anon"  # Any: google-auth has no types for it
        self.credential = "token of storage.options" if "token" in options else "Google credentials"

    async def _connect(self) -> Any:  # Any: gcsfs has no types
        filesystem_class = await in_thread(_import_filesystem)
        if "token" not in self._options:
            self.credential, self._credentials = await in_thread(self._load_credentials)
        if self._credentials:
            from google.oauth2.credentials import Credentials as Bearer

            # Without an expiry, gcsfs never refreshes it, which it would do in the I/O loop.
            self._bearer = Bearer("unknown")  # type: ignore[no-untyped-call] # google-auth has none here
        session = await network.session_options(self._settings.transfer, self._block.ca_file)
        arguments = {
            "token": self._bearer,
            "access": "read_only",
            "endpoint_url": _endpoint(self._block),
            "requests_timeout": session["timeout"],
            "session_kwargs": {**session, "headers": {"Accept-Encoding": "identity"}},
        }
        return filesystem_class(skip_instance_cache=True, use_listings_cache=False, **{**arguments, **self._options})

    async def _disconnect(self) -> None:
        if self._filesystem.session is not None:
            await self._filesystem.session.close()

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:  # Any: as above
        await self._refresh()
        return await super()._call(method, *args, **kwargs)

    async def _describe(self, _path: str, name: str, info: Info) -> RemoteFile:
        if encoding := info.get("contentEncoding"):
            raise StorageError(f"{self._uri}: {name}: stored with content encoding {encoding!r}; upload it without one")
        digests = known_digests(
            (("md5", hex_digest(info.get("md5Hash"), 16)), ("crc32c", hex_digest(info.get("crc32c"), 4)))
        )
        return RemoteFile(name, info["size"], info.get("generation"), digests)

    @asynccontextmanager
    async def _open_range(self, path: str, file: RemoteFile, start: int, end: int) -> AsyncIterator[Content]:
        await self._refresh()
        resource, filesystem = self._resource(file), self._filesystem
        session = await filesystem._set_session()
        async with session.get(
            URL(filesystem.url(path, generation=file.version), encoded=True),
            params=filesystem._get_params({}),
            headers=filesystem._get_headers({"Range": f"bytes={start}-{end - 1}"}),
        ) as response:
            if response.status == 404 and file.version:
                # A generation ends when the object is replaced.
                raise errors.changed_error(resource)
            response.raise_for_status()
            errors.check_content_range(resource, response.headers.get("Content-Range"), file.size, start, end)
            yield response.content

    def own_error(self, resource: str, error: BaseException, response: FailedResponse | None) -> StorageError | None:
        # gcsfs has no exception of its own for status 403, and appends any other status to the message.
        if type(error) is OSError and str(error).startswith("Forbidden: "):
            return errors.status_error(resource, FailedResponse(403, str(error).partition("\n")[2]), self)
        if response and response.message.endswith(suffix := f", {response.status}"):
            return errors.status_error(resource, replace(response, message=response.message.removesuffix(suffix)), self)
        return None

    async def _refresh(self) -> None:
        """Refresh the token of the session if it expires soon."""
        async with self._refreshing:
            if self._credentials:
                if not self._credentials.valid:
                    await in_thread(self._refresh_credentials, self._credentials)
                self._bearer.token = self._credentials.token

    def _load_credentials(self) -> tuple[str, Credentials | None]:
        """Return the name of the credential, and its source of tokens; None is anonymous."""
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError

        block = self._block
        is_emulator = bool(block.endpoint_url or os.environ.get("STORAGE_EMULATOR_HOST"))
        if block.anonymous or (is_emulator and not (block.key or block.key_file)):
            return "anonymous", None
        is_configured = bool(block.key or block.key_file or os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"))
        try:
            return _find_credentials(block)
        except (ValueError, OSError, GoogleAuthError) as error:
            if isinstance(error, DefaultCredentialsError) and not is_configured:
                return "anonymous, as no Google credentials are set up", None
            raise AccessDeniedError(f"{self._uri}: {errors.clean(str(error))}; {self.remedy}") from error

    def _refresh_credentials(self, credentials: Credentials) -> None:
        from google.auth.exceptions import GoogleAuthError, TransportError
        from google.auth.transport.requests import Request

        try:
            credentials.refresh(Request())  # type: ignore[no-untyped-call] # google-auth has none here
        except TransportError as error:
            message = errors.clean(str(error))
            raise StorageUnavailableError(f"{self._uri}: no token: {message}; try again") from error
        except GoogleAuthError as error:
            kind = StorageUnavailableError if error.retryable else AccessDeniedError
            message = errors.clean(str(error))
            raise kind(f"{self._uri}: {self.credential}: {message}; {self.remedy}") from error


def _import_filesystem() -> Any:  # Any: gcsfs has no types
    """Return gcsfs's class for ordinary buckets, without its retries: the download retries."""
    tokens = Path("~/.gcs_tokens").expanduser()
    # gcsfs unpickles this file when it is imported, which can run any code.
    if tokens.exists() and (
        tokens.stat().st_uid != os.getuid() or tokens.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        raise StorageError(f"{tokens}: other users can write to it, and gcsfs runs what is in it; remove it")
    # The class for other buckets asks another service for the type of the bucket first, for minutes if it is silent.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    from gcsfs.core import GCSFileSystem

    class Files(GCSFileSystem):  # type: ignore[misc] # as above
        _request = GCSFileSystem._request.__wrapped__

    return Files


def find_endpoint(uri: str, settings: GlobalStorageConfig) -> str | None:
    """Return the address that the config or the environment has for a bucket; None is Google's."""
    endpoint = _endpoint(block_for(settings.credentials.gcs, "bucket", bucket_and_path(uri, _BUCKET)[0]))
    return None if endpoint == _ENDPOINT else endpoint


def _endpoint(block: GcsCredentialsConfig | None) -> str:
    endpoint = (block and block.endpoint_url) or os.environ.get("STORAGE_EMULATOR_HOST") or _ENDPOINT
    return (endpoint if "://" in endpoint else f"http://{endpoint}").rstrip("/")


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
