"""`https://HOST/FILE`, or `https://HOST/DIRECTORY/` with a file `SHA256SUMS` in it, since the web has no listings."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import quote, unquote

from yarl import URL

from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import ArtifactCorruptError, ArtifactNotFoundError, StorageError
from appliance.core.uri import redact
from appliance.storage.filesystems import http_client, http_errors, sha256sums
from appliance.storage.filesystems.azure import AzureStore
from appliance.storage.filesystems.azure_uri import is_azure
from appliance.storage.filesystems.base import Body, Listing, RemoteFile, Store
from appliance.storage.filesystems.http_body import HttpResponse, Window, part
from appliance.storage.filesystems.http_headers import HttpHeaders
from appliance.storage.filesystems.object_listing import each, hexadecimal, only_known

_LARGEST_LISTING = 16 << 20


def open_store(uri: str, settings: GlobalStorageConfig) -> Store:
    """The store of a web URL: Azure's has a listing."""
    return AzureStore(uri, settings) if is_azure(uri) else HttpStore(uri, settings)


class HttpStore:
    """One file on a web server, or a directory that lists its files itself."""

    is_fixed = False

    def __init__(self, uri: str, settings: GlobalStorageConfig) -> None:
        self._url, login = http_client.without_user(_url(uri))
        self._uri = redact(str(self._url))
        self._access = HttpHeaders(self._url, login, settings.credentials.http)
        self._web = http_client.HttpClient(settings.transfer)

    @property
    def credential(self) -> str:
        return self._access.credential

    async def list(self) -> Listing:
        if self._url.raw_path.endswith("/"):
            sums = await self._sums()
            files = await each(lambda name: self._file(name, self._below(name), sums[name]), sums)
            return Listing(self._uri, tuple(files))
        file = await self._file(unquote(self._url.raw_name), self._url)
        # Two queries may mean two files, and be all that tells them apart.
        query = hashlib.sha256(self._url.raw_query_string.encode()).hexdigest()[:12]
        is_known = file.version or file.digests or not self._url.raw_query_string
        return Listing(self._uri if is_known else f"{self._uri};query={query}", (file,), is_file=True)

    @asynccontextmanager
    async def read(self, file: RemoteFile, start: int, end: int) -> AsyncIterator[Body]:
        what = self._what(file.name)
        url = self._below(file.name) if self._url.raw_path.endswith("/") else self._url
        first, last = (start, end) if file.is_divisible else (0, file.size)
        headers = self._access.headers({**_condition(file.version), **http_client.range_header(first, last)})
        async with self._web.get(what, url, headers, self._access.access) as answer:
            if _version(answer) != file.version:
                raise http_errors.changed(what)
            body = part(answer, file.size, first, last)
            yield body if file.is_divisible else Window(body, start, end)

    async def close(self) -> None:
        await self._web.close()

    def _below(self, name: str) -> URL:
        # The query goes along: it may be what lets us in.
        return URL.build(
            scheme=self._url.scheme,
            authority=self._url.raw_authority,
            path=self._url.raw_path + quote(name),
            query_string=self._url.raw_query_string,
            encoded=True,
        )

    def _what(self, name: str) -> str:
        return f"{self._uri}{name}" if self._url.raw_path.endswith("/") else self._uri

    async def _sums(self) -> Mapping[str, str]:
        headers = self._access.headers({"Accept-Encoding": "identity"})
        try:
            async with self._web.get(
                self._what(sha256sums.NAME), self._below(sha256sums.NAME), headers, self._access.access
            ) as answer:
                text = await answer.read(_LARGEST_LISTING)
        except ArtifactNotFoundError as error:
            raise ArtifactNotFoundError(
                f"{self._uri}: there is no {sha256sums.NAME}, and the web has no other listing; make one there with: "
                f"find . -type f -exec sha256sum {{}} + > {sha256sums.NAME}"
            ) from error
        try:
            sums = sha256sums.parse(self._uri, text.decode())
        except UnicodeDecodeError as error:
            raise ArtifactCorruptError(f"{self._uri}: {sha256sums.NAME} is no UTF-8 text; write it anew") from error
        if not sums:
            raise ArtifactNotFoundError(f"{self._uri}: {sha256sums.NAME} lists no file; write it anew")
        return sums

    async def _file(self, name: str, url: URL, sha256: str | None = None) -> RemoteFile:
        """Asked for one byte, because what may be got by GET need not answer HEAD."""
        what = self._what(name)
        headers = self._access.headers(http_client.range_header(0, 1))
        async with self._web.get(what, url, headers, self._access.access, also=416) as answer:
            size = _size(answer)
            if size is None:
                raise StorageError(f"{what}: the server does not say how large it is; have it send Content-Length")
            digests = {"sha256": sha256} if sha256 else _digests(answer.headers)
            return RemoteFile(name, size, _version(answer), digests, is_divisible=answer.status != 200)


def _url(uri: str) -> URL:
    """The URL, which may be written with characters that are not allowed in one; a signed query stays as it is."""
    is_escaped = uri.isascii() and not any(sign in uri for sign in ' "<>\\^`{|}')
    try:
        url = URL(uri.partition("#")[0], encoded=is_escaped)
    except ValueError as error:
        raise StorageError(f"{redact(uri)}: no web address; write https://HOST/FILE") from error
    if not url.host:
        raise StorageError(f"{redact(uri)}: names no host; write https://HOST/FILE")
    return url


def _size(answer: HttpResponse) -> int | None:
    if answer.status == 200:
        length = answer.headers.get("Content-Length", "")
        return int(length) if length.isdecimal() else None
    content_range = answer.headers.get("Content-Range", "")
    # No first byte: the file has none at all.
    return 0 if answer.status == 416 and content_range in ("", "bytes */0") else http_errors.total_size(content_range)


def _version(answer: HttpResponse) -> str | None:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified")


def _condition(version: str | None) -> dict[str, str]:
    # A weak tag, and a time of whole seconds, would be no condition that servers accept.
    return {"If-Range": version} if version and version.startswith('"') else {}


def _digests(headers: Mapping[str, str]) -> Mapping[str, str]:
    """The digests that some servers send: RFC 9530's, and Artifactory's."""
    fields = (field.strip() for field in headers.get("Repr-Digest", "").split(","))
    standard = next((field[len("sha-256=:") : -1] for field in fields if field.startswith("sha-256=:")), None)
    artifactory = headers.get("X-Checksum-Sha256", "").lower()
    return only_known([("sha256", hexadecimal(standard, 32) or (artifactory if len(artifactory) == 64 else None))])
