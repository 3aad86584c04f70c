"""GET requests in the session of fsspec's HTTP filesystem, for web servers, the hub and registries.

Redirects are followed here: aiohttp takes every header but `Authorization` to the next host.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from ssl import SSLContext
from typing import Any

import aiohttp
from fsspec.implementations.http import HTTPFileSystem
from yarl import URL

from appliance.config.storage import TransferConfig
from appliance.core.concurrency import in_thread
from appliance.core.errors import StorageError, StorageUnavailableError
from appliance.storage.filesystems import errors, network

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 10

# What is left of a response that is not used is read, so that its connection can be used again.
_MAX_UNUSED_BYTES = 4096

HeadersFor = Callable[[URL], Mapping[str, str]]
"""Returns the credentials for a URL as headers; called again after each redirect."""

CaFileFor = Callable[[URL], Path | None]
"""Returns the file with further certificate authorities for a URL, if there is one."""


class HttpSession:
    """Sends each host its own credentials, also after redirects; created, used and closed in fsspec's I/O loop."""

    def __init__(
        self,
        filesystem: HTTPFileSystem,
        headers_for: HeadersFor,
        ca_file_for: CaFileFor = lambda _: None,
        *,
        uses_netrc: bool = True,
    ) -> None:
        self.filesystem = filesystem
        self._headers_for = headers_for
        self._ca_file_for = ca_file_for
        self._netrc_login: HeadersFor = cache(network.netrc_login) if uses_netrc else lambda _: {}
        self._tls_contexts: dict[Path, SSLContext] = {}

    @classmethod
    async def open(cls, transfer: TransferConfig, headers_for: HeadersFor, ca_file_for: CaFileFor) -> HttpSession:
        """Return a session without connections."""
        options = await network.session_options(transfer)
        return cls(HTTPFileSystem(skip_instance_cache=True, client_kwargs=options), headers_for, ca_file_for)

    @asynccontextmanager
    async def get(
        self, resource: str, url: URL, headers: Mapping[str, str] = {}, accepted: Collection[int] = ()
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a GET request and follow redirects; a status in `accepted` is no failure.

        Raises:
            aiohttp.ClientError: there is no response, or its status is one of failure.
            StorageError: the redirects lead nowhere, or the end of the response cannot be known.
        """
        scheme = url.scheme
        for _ in range(_MAX_REDIRECTS):
            # Nothing secret is sent in the clear because of a redirect.
            credentials = {} if (scheme, url.scheme) == ("https", "http") else self._credentials(url)
            async with await self.send("GET", url, {**headers, **credentials}) as response:
                is_redirect = response.status in _REDIRECTS and "Location" in response.headers
                if not is_redirect and (response.status < 400 or response.status in accepted):
                    _require_length(resource, response)
                    yield response
                    return
                with suppress(aiohttp.ClientError):
                    await response.content.read(_MAX_UNUSED_BYTES)
                response.raise_for_status()
                url = _redirect_target(resource, url, response.headers["Location"])
        raise StorageError(f"{resource}: the server redirects too often; check the URI")

    async def send(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str] = {},
        **options: Any,  # Any: aiohttp's
    ) -> aiohttp.ClientResponse:
        """Send one request without credentials of its own, and return the response, which may be a redirect."""
        session: aiohttp.ClientSession = await self.filesystem.set_session()
        headers = {"Accept-Encoding": "identity", **headers}
        context = await self._tls_context(url)
        return await session.request(method, url, headers=headers, ssl=context, allow_redirects=False, **options)

    async def close(self) -> None:
        """Close all connections."""
        session = await self.filesystem.set_session()
        await session.close()

    def _credentials(self, url: URL) -> Mapping[str, str]:
        own = self._headers_for(url)
        has_login = any(name.lower() == "authorization" for name in own)
        return own if has_login else {**own, **self._netrc_login(url.origin())}

    async def _tls_context(self, url: URL) -> SSLContext | bool:
        """Return the context for a URL; True is that of the session."""
        file = self._ca_file_for(url)
        if file is None:
            return True
        if file not in self._tls_contexts:
            self._tls_contexts[file] = await in_thread(network.tls_context, file)
        return self._tls_contexts[file]


def range_header(start: int, end: int) -> Mapping[str, str]:
    """Return the header that requests the bytes from `start` up to `end`."""
    return {"Range": f"bytes={start}-{end - 1}"}


def check_range(resource: str, response: aiohttp.ClientResponse, size: int, start: int, end: int) -> None:
    """Check that a response has the bytes from `start` up to `end` of a file of `size` bytes.

    Raises:
        StorageError: it has others, or they are encoded.
    """
    if encoding := response.headers.get("Content-Encoding", "").replace("identity", ""):
        raise StorageError(
            f"{resource}: has the content encoding {encoding!r}; configure the server to send it unencoded"
        )
    if response.status not in (200, 206):
        raise StorageUnavailableError(f"{resource}: the server responds {response.status}; try again")
    if response.status == 206 or (start, end) != (0, size):
        errors.check_content_range(resource, response.headers.get("Content-Range"), size, start, end)
    elif response.content_length not in (None, size):
        raise errors.changed_error(resource)


async def read_body(resource: str, response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Return the whole body of a response.

    Raises:
        StorageError: it has more than `max_bytes`.
    """
    body = bytearray()
    while block := await response.content.read(max_bytes + 1 - len(body)):
        body += block
    if len(body) > max_bytes:
        raise StorageError(f"{resource}: the response has more than {max_bytes:,} bytes; check the URI")
    return bytes(body)


def split_login(url: URL) -> tuple[URL, Mapping[str, str]]:
    """Return a URL without its user and password, and the header that sends them."""
    if url.user is None and url.password is None:
        return url, {}
    return url.with_user(None), {"Authorization": network.basic_login(url.user or "", url.password or "")}


def _require_length(resource: str, response: aiohttp.ClientResponse) -> None:
    """Check that a response says where it ends.

    One that does not may have been cut within its headers, which Python's parser accepts as complete.
    """
    headers = response.headers
    if response.version == aiohttp.HttpVersion10 or response.status in (204, 304):
        return
    has_end = "Content-Length" in headers or "Transfer-Encoding" in headers
    if not has_end and headers.get("Connection", "").lower() != "close":
        raise StorageUnavailableError(f"{resource}: the response has no length; try again, or check proxies on the way")


def _redirect_target(resource: str, url: URL, location: str) -> URL:
    """Return where a redirect leads, without a login that the server chose.

    Raises:
        StorageError: it is no web address.
    """
    try:
        target = url.join(URL(location, encoded=location.isascii()))
    except ValueError:
        target = URL()
    if target.scheme not in ("http", "https") or not target.host:
        raise StorageError(f"{resource}: the server redirects to an invalid address; check the URI")
    return target.with_user(None)
