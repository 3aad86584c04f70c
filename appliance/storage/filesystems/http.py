"""`https://HOST/FILE`, and `https://HOST/DIRECTORY/` with a `SHA256SUMS` or an index page, through fsspec's HTTP."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import aiohttp
from yarl import URL

from appliance.config.credentials import HttpCredentialsConfig, value_of
from appliance.config.storage import GlobalStorageConfig
from appliance.core.concurrency import in_thread
from appliance.core.errors import ArtifactCorruptError, ArtifactNotFoundError, StorageError
from appliance.core.uri import hub_uri_of, redact
from appliance.storage.filesystems import errors, network
from appliance.storage.filesystems.base import (
    Listing,
    RemoteFile,
    hex_digest,
    known_digests,
)
from appliance.storage.filesystems.http_listing import SUMS, parse_index, parse_sums
from appliance.storage.filesystems.http_session import HttpSession, check_range, range_header, read_body, split_login
from appliance.storage.filesystems.store import Content, FilesystemStore, Info, gather

_MAX_LISTING_BYTES = 16 << 20

# A directory that links to itself has no end.
_MAX_DIRECTORIES = 1000
_MAX_FILES = 20_000

_MISSING = frozenset({404, 410})


class HttpStore(FilesystemStore):
    """One file on a web server, or a directory with a listing."""

    _session: HttpSession

    def __init__(self, uri: str, settings: GlobalStorageConfig) -> None:
        super().__init__(uri, settings)
        self._url, login = split_login(_parse(uri))
        self._uri = redact(str(self._url))
        self._root = unquote(self._url.raw_path).rstrip("/")
        self._must_be_directory = self._url.raw_path.endswith("/")
        self._auth = _HttpAuth(self._url, login, settings.credentials.http)
        self.credential = self._auth.credential
        self.remedy = f"set the headers of {self._url.host} in storage.credentials.http"

    async def _connect(self) -> Any:  # Any: fsspec has no types
        self._session = await HttpSession.open(self._settings.transfer, self._auth.headers, self._auth.ca_file)
        return self._session.filesystem

    async def _disconnect(self) -> None:
        await self._session.close()

    async def _list(self) -> Listing:
        listing = await super()._list()
        query, file = self._url.raw_query_string, listing.files[0]
        if not listing.is_file or not query or file.version or file.digests:
            return listing
        # The query may be all that tells two files apart.
        return replace(listing, uri=f"{self._uri};query={hashlib.sha256(query.encode()).hexdigest()[:12]}")

    async def _find(self) -> Mapping[str, Info]:
        if not self._must_be_directory:
            return {}
        sums = await self._read_sums()
        names = await self._read_index() if sums is None else sums
        return {f"{self._root}/{name}": {"type": "file", "sha256": (sums or {}).get(name)} for name in names}

    async def _info(self, _path: str) -> Info:
        return {"type": "file", "sha256": None}

    async def _describe(self, _path: str, name: str, info: Info) -> RemoteFile:
        """Request one byte, because some servers answer GET and not HEAD."""
        resource = f"{self._uri}: {name}"
        async with self._session.get(resource, self._at(name), range_header(0, 1), accepted={416}) as response:
            may_be_page = info["sha256"] or (self._must_be_directory and name.endswith((".html", ".htm")))
            if _is_page(response) and not may_be_page:
                hint = self._hub_hint or "check the URI, and whether it needs a login"
                raise StorageError(f"{resource}: a web page, and no file of a model; {hint}")
            size = _size(response)
            if size is None:
                raise StorageError(f"{resource}: the server does not send its size; make it send Content-Length")
            digests = {"sha256": info["sha256"]} if info["sha256"] else _digests(response.headers)
            return RemoteFile(name, size, _version(response), digests, is_divisible=response.status != 200)

    @asynccontextmanager
    async def _open_range(self, _path: str, file: RemoteFile, start: int, end: int) -> AsyncIterator[Content]:
        resource = self._resource(file)
        first, last = (start, end) if file.is_divisible else (0, file.size)
        headers = {**_condition(file.version), **range_header(first, last)}
        async with self._session.get(resource, self._at(file.name), headers) as response:
            if _version(response) != file.version:
                raise errors.changed_error(resource)
            check_range(resource, response, file.size, first, last)
            yield response.content if file.is_divisible else _Window(response.content, start, end)

    def _at(self, name: str) -> URL:
        """Return the URL of a file or directory; the query is kept, because it may authorize the request."""
        if not self._must_be_directory:
            return self._url
        return URL.build(
            scheme=self._url.scheme,
            authority=self._url.raw_authority,
            path=self._url.raw_path + quote(name),
            query_string=self._url.raw_query_string,
            encoded=True,
        )

    async def _read_sums(self) -> Mapping[str, str] | None:
        """Return the digests of the files in `SHA256SUMS`, or None if there is none."""
        async with self._session.get(f"{self._uri}{SUMS}", self._at(SUMS), accepted=_MISSING) as response:
            if response.status in _MISSING or _is_page(response):
                return None
            text = await read_body(self._uri, response, _MAX_LISTING_BYTES)
        try:
            sums = parse_sums(self._uri, text.decode())
        except UnicodeDecodeError as error:
            raise ArtifactCorruptError(f"{self._uri}: {SUMS} is not UTF-8; create it again") from error
        if not sums:
            raise ArtifactNotFoundError(f"{self._uri}: {SUMS} lists no file; create it again")
        return sums

    async def _read_index(self) -> Sequence[str]:
        """Return the names of all files on the index pages of the directory and those in it."""
        files: list[str] = []
        directories, count = [""], 0
        while directories:
            count += len(directories)
            names = [name for page in await gather(self._read_page, directories) for name in page]
            files += [name for name in names if not name.endswith("/")]
            directories = [name for name in names if name.endswith("/")]
            if len(files) > _MAX_FILES or count + len(directories) > _MAX_DIRECTORIES:
                raise StorageError(
                    f"{self._uri}: its index pages list more than {_MAX_FILES:,} files or {_MAX_DIRECTORIES:,} "
                    f"directories; name one of these, or create a {SUMS} there"
                )
        return files

    async def _read_page(self, directory: str) -> Sequence[str]:
        """Return the names on the index page of a directory, relative to the root."""
        names = None
        async with self._session.get(f"{self._uri}{directory}", self._at(directory), accepted=_MISSING) as response:
            if response.status == 200 and _is_page(response):
                page = await read_body(self._uri, response, _MAX_LISTING_BYTES)
                names = await in_thread(parse_index, response.url, page.decode(errors="replace"))
        if names is None:
            hint = self._hub_hint or f"create it there with: find . -type f -exec sha256sum {{}} + > {SUMS}"
            raise ArtifactNotFoundError(f"{self._uri}{directory}: there is no {SUMS} and no index page; {hint}")
        return [directory + name for name in names]

    @property
    def _hub_hint(self) -> str | None:
        """The question whether the model is meant whose page on the hub this is."""
        uri = hub_uri_of(str(self._url), os.environ.get("HF_ENDPOINT"))
        return f"did you mean {uri}?" if uri else None


class _HttpAuth:
    """What the config, the URI, KServe's variables and `.netrc` have for each host."""

    def __init__(self, url: URL, login: Mapping[str, str], credentials: Sequence[HttpCredentialsConfig]) -> None:
        self._url = url
        self._login = login
        self._credentials = credentials

    @property
    def credential(self) -> str:
        """Which credential the first host gets."""
        if self._login:
            return "the user in the URI"
        if (block := self._block(self._url)) and block.headers:
            return "headers of storage.credentials.http"
        if _headers_variable(self._url):
            return f"headers of the variable {_variable_name(self._url)}"
        if network.netrc_login(self._url):
            return "the login in .netrc"
        return "the query of the URI" if self._url.raw_query_string else "anonymous"

    def headers(self, url: URL) -> Mapping[str, str]:
        """Return the headers for a URL: each host gets its own."""
        login = self._login if url.origin() == self._url.origin() else {}
        block = self._block(url)
        if block and block.headers:
            own = {name: value_of(value) or "" for name, value in block.headers.items()}
        else:
            own = dict(_headers_variable(url))
        return {**own, **login}

    def ca_file(self, url: URL) -> Path | None:
        """Return the certificate authorities that the config has for a URL."""
        block = self._block(url)
        return block.ca_file if block else None

    def _block(self, url: URL) -> HttpCredentialsConfig | None:
        names = (f"{url.host}:{url.port}", url.host)
        return next((block for name in names for block in self._credentials if block.host.lower() == name), None)


class _Window:
    """The bytes from `start` up to `end` of a whole file."""

    def __init__(self, content: aiohttp.StreamReader, start: int, end: int) -> None:
        self._content = content
        self._to_skip = start
        self._left = end - start

    async def readchunk(self) -> tuple[bytes, bool]:
        received, ends_chunk = await self._content.readchunk() if self._left else (b"", False)
        block = received[self._to_skip :][: self._left]
        self._to_skip = max(0, self._to_skip - len(received))
        self._left -= len(block)
        # A block that was skipped whole is not the end.
        return block, ends_chunk or len(block) < len(received)


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


def _size(response: aiohttp.ClientResponse) -> int | None:
    if response.status == 200:
        length = response.headers.get("Content-Length", "")
        return int(length) if length.isdecimal() else None
    content_range = response.headers.get("Content-Range", "")
    # An empty file has no first byte.
    if response.status == 416 and content_range in ("", "bytes */0"):
        return 0
    return errors.total_size(content_range)


def _is_page(response: aiohttp.ClientResponse) -> bool:
    return response.content_type == "text/html"


def _version(response: aiohttp.ClientResponse) -> str | None:
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
