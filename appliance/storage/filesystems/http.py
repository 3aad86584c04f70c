"""`https://HOST/FILE`, and `https://HOST/DIRECTORY/` with a file `SHA256SUMS` as its listing."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from urllib.parse import quote, unquote

from yarl import URL

from appliance.config.credentials import HttpCredentialsConfig, value_of
from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import ArtifactCorruptError, ArtifactNotFoundError, StorageError
from appliance.core.uri import redact
from appliance.storage.filesystems import errors
from appliance.storage.filesystems.azure import AzureStore
from appliance.storage.filesystems.azure_account import is_azure
from appliance.storage.filesystems.base import Body, Listing, RemoteFile, Store, hex_digest, known_digests
from appliance.storage.filesystems.errors import AccessHint
from appliance.storage.filesystems.http_client import (
    BodyWindow,
    HeadersFor,
    HttpClient,
    HttpResponse,
    range_header,
    split_login,
)
from appliance.storage.filesystems.store import gather
from appliance.storage.path_safety import name_error

_MAX_LISTING_BYTES = 16 << 20

_SUMS = "SHA256SUMS"

# As GNU coreutils writes it, and as BSD's tools do (`sha256sum --tag`).
_SUMS_LINE = re.compile(
    r"(?P<sum>[0-9a-fA-F]{64}) [ *](?P<name>.+)|SHA256 \((?P<tagged>.+)\) = (?P<tag>[0-9a-fA-F]{64})"
)


def open_store(uri: str, settings: GlobalStorageConfig) -> Store:
    """Return the store of a web URL, Azure's for its hosts."""
    return AzureStore(uri, settings) if is_azure(uri) else HttpStore(uri, settings)


class HttpStore:
    """One file on a web server, or a directory with a `SHA256SUMS`."""

    is_fixed = False

    def __init__(self, uri: str, settings: GlobalStorageConfig) -> None:
        self._url, login = split_login(_parse(uri))
        self._is_directory = self._url.raw_path.endswith("/")
        self._uri = redact(str(self._url))
        self._auth = _HttpAuth(self._url, login, settings.credentials.http)
        self._client = HttpClient(settings.transfer)

    @property
    def credential(self) -> str:
        return self._auth.credential

    async def list(self) -> Listing:
        if self._is_directory:
            sums = await self._read_sums()
            files = await gather(lambda name: self._file(name, self._below(name), sums[name]), sums)
            return Listing(self._uri, tuple(files))
        file = await self._file(unquote(self._url.raw_name), self._url)
        # Without a version, the query may be all that tells two files apart.
        query = hashlib.sha256(self._url.raw_query_string.encode()).hexdigest()[:12]
        is_known = file.version or file.digests or not self._url.raw_query_string
        return Listing(self._uri if is_known else f"{self._uri};query={query}", (file,), is_file=True)

    @asynccontextmanager
    async def read(self, file: RemoteFile, start: int, end: int) -> AsyncIterator[Body]:
        resource = self._resource(file.name)
        url = self._below(file.name) if self._is_directory else self._url
        first, last = (start, end) if file.is_divisible else (0, file.size)
        headers = self._auth.headers({**_condition(file.version), **range_header(first, last)})
        async with self._client.get(resource, url, headers, self._auth.hint) as response:
            if _version(response) != file.version:
                raise errors.changed_error(resource)
            body = response.range_body(file.size, first, last)
            yield body if file.is_divisible else BodyWindow(body, start, end)

    async def close(self) -> None:
        await self._client.close()

    def _below(self, name: str) -> URL:
        # The query is kept, because it may authorize the request.
        return URL.build(
            scheme=self._url.scheme,
            authority=self._url.raw_authority,
            path=self._url.raw_path + quote(name),
            query_string=self._url.raw_query_string,
            encoded=True,
        )

    def _resource(self, name: str) -> str:
        return f"{self._uri}{name}" if self._is_directory else self._uri

    async def _read_sums(self) -> Mapping[str, str]:
        headers = self._auth.headers({"Accept-Encoding": "identity"})
        url = self._below(_SUMS)
        try:
            async with self._client.get(self._resource(_SUMS), url, headers, self._auth.hint) as response:
                text = await response.read(_MAX_LISTING_BYTES)
        except ArtifactNotFoundError as error:
            raise ArtifactNotFoundError(
                f"{self._uri}: there is no {_SUMS}, and HTTP has no other listing; create it there with: "
                f"find . -type f -exec sha256sum {{}} + > {_SUMS}"
            ) from error
        try:
            sums = parse_sums(self._uri, text.decode())
        except UnicodeDecodeError as error:
            raise ArtifactCorruptError(f"{self._uri}: {_SUMS} is not UTF-8; create it again") from error
        if not sums:
            raise ArtifactNotFoundError(f"{self._uri}: {_SUMS} lists no file; create it again")
        return sums

    async def _file(self, name: str, url: URL, sha256: str | None = None) -> RemoteFile:
        """Request one byte, because some servers answer GET and not HEAD."""
        resource = self._resource(name)
        headers = self._auth.headers(range_header(0, 1))
        async with self._client.get(resource, url, headers, self._auth.hint, accepted_status=416) as response:
            size = _size(response)
            if size is None:
                raise StorageError(f"{resource}: the server does not send its size; make it send Content-Length")
            digests = {"sha256": sha256} if sha256 else _digests(response.headers)
            return RemoteFile(name, size, _version(response), digests, is_divisible=response.status != 200)


class _HttpAuth:
    """The headers of the config, the URI and KServe's variables for each host."""

    def __init__(self, url: URL, login: Mapping[str, str], credentials: Sequence[HttpCredentialsConfig]) -> None:
        self._url = url
        self._login = login
        self._credentials = credentials

    @property
    def credential(self) -> str:
        """Which credential the first host gets."""
        if self._login:
            return "the user in the URI"
        if self._configured(self._url):
            return "headers of storage.credentials.http"
        if _headers_variable(self._url):
            return f"headers of the variable {_variable_name(self._url)}"
        return "the query of the URI" if self._url.raw_query_string else "anonymous"

    @property
    def hint(self) -> AccessHint:
        """The credential, and what to do if it is not sufficient."""
        return AccessHint(self.credential, f"set the headers of {self._url.host} in storage.credentials.http")

    def headers(self, more: Mapping[str, str]) -> HeadersFor:
        """Return the headers for each URL: each host gets its own, and none after a redirect from https to http."""

        def headers_for(url: URL) -> Mapping[str, str]:
            if self._url.scheme == "https" and url.scheme != "https":
                return more
            login = self._login if url.origin() == self._url.origin() else {}
            if configured := self._configured(url):
                own = {name: value_of(value) or "" for name, value in configured.headers.items()}
            else:
                own = dict(_headers_variable(url))
            return {**more, **own, **login}

        return headers_for

    def _configured(self, url: URL) -> HttpCredentialsConfig | None:
        names = (f"{url.host}:{url.port}", url.host)
        return next((block for name in names for block in self._credentials if block.host.lower() == name), None)


def _headers_variable(url: URL) -> Mapping[str, str]:
    name = _variable_name(url)
    try:
        found = json.loads(os.environ.get(name) or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise StorageError(f"the variable {name} is not a JSON object of strings; correct it")
    return found


def _variable_name(url: URL) -> str:
    # KServe's: https://kserve.github.io/website/ (storage over HTTP with headers).
    return f"{url.host}-headers"


def parse_sums(uri: str, text: str) -> Mapping[str, str]:
    """Return the digest of each file by its name, in the order of a `SHA256SUMS`."""
    sums: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        if not (found := _SUMS_LINE.fullmatch(line)):
            raise ArtifactCorruptError(f"{uri}: line {number} of {_SUMS} is no line of sha256sum; create it again")
        name = (found["name"] or found["tagged"]).removeprefix("./")
        if error := name_error(name):
            raise ArtifactCorruptError(f"{uri}: the file {name!r} in {_SUMS} {error}; the model is refused")
        sums[name] = (found["sum"] or found["tag"]).lower()
    # The shell creates the file before sha256sum searches for files, so it often lists itself.
    sums.pop(_SUMS, None)
    return sums


def _parse(uri: str) -> URL:
    """Return the URL, which may have characters that are not allowed in one; a signed query is kept as it is."""
    is_escaped = uri.isascii() and not any(character in uri for character in ' "<>\\^`{|}')
    try:
        url = URL(uri.partition("#")[0], encoded=is_escaped)
    except ValueError as error:
        raise StorageError(f"{redact(uri)}: no web address; write https://HOST/FILE") from error
    if not url.host:
        raise StorageError(f"{redact(uri)}: names no host; write https://HOST/FILE")
    return url


def _size(response: HttpResponse) -> int | None:
    if response.status == 200:
        length = response.headers.get("Content-Length", "")
        return int(length) if length.isdecimal() else None
    content_range = response.headers.get("Content-Range", "")
    # An empty file has no first byte.
    if response.status == 416 and content_range in ("", "bytes */0"):
        return 0
    return errors.total_size(content_range)


def _version(response: HttpResponse) -> str | None:
    return response.headers.get("ETag") or response.headers.get("Last-Modified")


def _condition(version: str | None) -> dict[str, str]:
    # Servers accept neither a weak tag nor a time of whole seconds as a condition.
    return {"If-Range": version} if version and version.startswith('"') else {}


def _digests(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return the digests of RFC 9530's and Artifactory's headers."""
    fields = (field.strip() for field in headers.get("Repr-Digest", "").split(","))
    standard = next((field[len("sha-256=:") : -1] for field in fields if field.startswith("sha-256=:")), None)
    artifactory = headers.get("X-Checksum-Sha256", "").lower()
    return known_digests([("sha256", hex_digest(standard, 32) or (artifactory if len(artifactory) == 64 else None))])
