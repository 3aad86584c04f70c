"""HTTP requests for files and ranges of files, with redirects, proxies and `.netrc`.

urllib3 in threads: an event loop would read on one processor, and copy more than once.
"""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from threading import Lock

import urllib3
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse
from yarl import URL

from appliance.config.storage import TransferConfig
from appliance.core.concurrency import in_thread, opened_in_thread
from appliance.core.errors import StorageError, StorageUnavailableError
from appliance.storage.filesystems import errors, network
from appliance.storage.filesystems.base import Body
from appliance.storage.filesystems.errors import AccessHint

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 10

# Connections to one host that are kept for the next request; a listing uses more at once than a small download.
_MIN_KEPT_CONNECTIONS = 16

_MAX_ERROR_BYTES = 4096

# The number of http.client; a response of HTTP/1.0 may end with its connection.
_HTTP_1_0 = 10

HeadersFor = Callable[[URL], Mapping[str, str]]
"""Returns the headers for a URL; called again after each redirect, so that no credential goes to another host."""


class ResponseBody:
    """The body of a urllib3 response."""

    def __init__(self, resource: str, response: BaseHTTPResponse) -> None:
        self._resource = resource
        self._response = response
        self._is_aborted = False

    def read(self, size: int, /) -> bytes:
        try:
            block = self._response.read1(size, decode_content=False)
        except (HTTPError, OSError) as error:
            raise errors.connection_error(self._resource, error) from error
        # After an abort, a TLS connection may return anything.
        if self._is_aborted:
            raise StorageUnavailableError(f"{self._resource}: aborted; try again")
        return block

    def abort(self) -> None:
        self._is_aborted = True
        # A response that was read to its end has no connection any more.
        with suppress(RuntimeError, ValueError, OSError):
            self._response.shutdown()

    def close(self) -> None:
        """Release the connection, which is reused if everything was read."""
        with suppress(HTTPError, OSError):
            self._response.close()


class ExactBody:
    """A body that must have exactly `size` bytes."""

    def __init__(self, resource: str, body: Body, size: int) -> None:
        self._resource = resource
        self._body = body
        self._left = size

    def read(self, size: int, /) -> bytes:
        # One byte further, to reach the end; only then can the connection be reused.
        block = self._body.read(min(size, self._left + 1))
        self._left -= len(block)
        if self._left < 0 or (self._left and not block):
            raise errors.length_error(self._resource, self._left)
        return block

    def abort(self) -> None:
        self._body.abort()


class BodyWindow:
    """The bytes from `start` up to `end` of another body."""

    def __init__(self, body: Body, start: int, end: int) -> None:
        self._body = body
        self._to_skip = start
        self._left = end - start

    def read(self, size: int, /) -> bytes:
        while self._to_skip:
            self._to_skip -= len(self._body.read(min(size, self._to_skip)))
        block = self._body.read(min(size, self._left)) if self._left else b""
        self._left -= len(block)
        return block

    def abort(self) -> None:
        self._body.abort()


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response from `url`, after redirects; its body is not read yet. `resource` names it in messages."""

    resource: str
    url: URL
    status: int
    reason: str
    headers: Mapping[str, str]
    body: ResponseBody

    async def read(self, max_bytes: int) -> bytes:
        """Return the body, or the beginning of a longer one."""
        return await in_thread(self._read, max_bytes)

    def range_body(self, size: int, start: int, end: int) -> Body:
        """Return the body, which must be the bytes from `start` up to `end` of a file of `size` bytes."""
        if encoding := self.headers.get("Content-Encoding", "").replace("identity", ""):
            raise StorageError(
                f"{self.resource}: has the content encoding {encoding!r}; configure the server to send it unencoded"
            )
        if self.status not in (200, 206):
            raise StorageUnavailableError(f"{self.resource}: the server responds {self.status}; try again")
        if self.status != 200 or (start, end) != (0, size):
            content_range = self.headers.get("Content-Range")
            errors.check_content_range(self.resource, content_range, size, start, end)
        return ExactBody(self.resource, self.body, end - start)

    def next_page(self) -> URL | None:
        """Return the URL of the next page from the Link header (RFC 8288), or None."""
        found = re.search(r"<([^>]*)>[^,]*;\s*rel=\"?next\b", self.headers.get("Link", ""))
        return self.url.join(URL(found[1], encoded=True)) if found else None

    def close(self) -> None:
        """Release the connection."""
        self.body.close()

    def _read(self, max_bytes: int) -> bytes:
        blocks, left = [], max_bytes
        while left and (block := self.body.read(left)):
            blocks.append(block)
            left -= len(block)
        return b"".join(blocks)


ToError = Callable[[HttpResponse], StorageError | None]
"""Returns the error for a failed response; None means the error of its status."""


class HttpClient:
    """An HTTP client for one store; it connects with the first request."""

    def __init__(self, transfer: TransferConfig) -> None:
        connect, read = errors.client_timeouts(transfer)
        self._timeout = urllib3.Timeout(connect=connect, read=read)
        self._kept_connections = max(_MIN_KEPT_CONNECTIONS, transfer.parallel)
        self._lock = Lock()
        self._pools: dict[URL, tuple[urllib3.PoolManager, Mapping[str, str]]] = {}

    @asynccontextmanager
    async def get(
        self,
        resource: str,
        url: URL,
        headers: HeadersFor,
        access: AccessHint,
        to_error: ToError = lambda _: None,
        accepted_status: int = 200,
    ) -> AsyncIterator[HttpResponse]:
        """Send a GET request, and follow redirects; `accepted_status` counts as a success."""
        async with opened_in_thread(self._follow, resource, url, headers) as response:
            if response.status >= 400 and response.status != accepted_status:
                # Read, so that the connection can be reused.
                with suppress(StorageError):
                    await response.read(_MAX_ERROR_BYTES)
                wait = errors.retry_after(response.headers)
                raise to_error(response) or errors.status_error(
                    resource, response.status, response.reason, access, retry_after=wait
                )
            yield response

    async def close(self) -> None:
        """Close all connections."""
        for pool, _ in self._pools.values():
            pool.clear()

    def _follow(self, resource: str, url: URL, headers: HeadersFor) -> HttpResponse:
        for _ in range(_MAX_REDIRECTS):
            response = self._send(resource, url, headers(url))
            body = ResponseBody(resource, response)
            if response.status not in _REDIRECTS or "Location" not in response.headers:
                return HttpResponse(resource, url, response.status, response.reason or "", response.headers, body)
            # Read, so that the connection can be reused.
            with suppress(StorageError):
                body.read(_MAX_ERROR_BYTES)
            body.close()
            url = _redirect_target(resource, url, response.headers["Location"])
        raise StorageError(f"{resource}: the server redirects too often; check the URI")

    def _send(self, resource: str, url: URL, headers: Mapping[str, str]) -> BaseHTTPResponse:
        pool, login = self._pool_for(url.origin())
        has_login = any(name.lower() == "authorization" for name in headers)
        try:
            # Not urllib3's own redirects: they remove only a few headers for another host.
            response = pool.request(
                "GET",
                str(url),
                headers={**headers, **({} if has_login else login)},
                timeout=self._timeout,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except (HTTPError, OSError, ValueError) as error:
            raise errors.connection_error(resource, error) from error
        if response.version > _HTTP_1_0 and not errors.is_framed(response.status, response.headers):
            response.close()
            raise StorageUnavailableError(
                f"{resource}: the response has no length; try again, or check proxies on the way"
            )
        return response

    def _pool_for(self, origin: URL) -> tuple[urllib3.PoolManager, Mapping[str, str]]:
        """Return the connections to a host, and the login of `.netrc` for it."""
        with self._lock:
            if origin not in self._pools:
                self._pools[origin] = _create_pool(origin, self._kept_connections), network.netrc_login(origin)
            return self._pools[origin]


def range_header(start: int, end: int) -> Mapping[str, str]:
    """Return the headers that request the bytes from `start` up to `end`, unencoded."""
    return {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}


def split_login(url: URL) -> tuple[URL, Mapping[str, str]]:
    """Return a URL without its user and password, and the header that sends them."""
    if url.user is None and url.password is None:
        return url, {}
    login = base64.b64encode(f"{url.user or ''}:{url.password or ''}".encode()).decode()
    return url.with_user(None), {"Authorization": f"Basic {login}"}


def only_for(home: URL, headers: Mapping[str, str]) -> HeadersFor:
    """Send the headers to the host of `home`, and to any other host only those that are no credential."""
    elsewhere = {name: value for name, value in headers.items() if name in ("Range", "Accept-Encoding")}
    return lambda url: headers if url.origin() == home.origin() else elsewhere


def _redirect_target(resource: str, url: URL, location: str) -> URL:
    try:
        target = url.join(URL(location, encoded=location.isascii()))
    except ValueError:
        target = URL()
    if target.scheme not in ("http", "https") or not target.host:
        raise StorageError(f"{resource}: the server redirects to an invalid address; check the URI")
    return target


def _create_pool(origin: URL, kept_connections: int) -> urllib3.PoolManager:
    proxy = network.proxy_of(origin)
    context = network.tls_context() if "https" in (origin.scheme, proxy and proxy.url.scheme) else None
    if proxy is None:
        return urllib3.PoolManager(maxsize=kept_connections, ssl_context=context)
    login = {}
    if proxy.user:
        login = urllib3.make_headers(proxy_basic_auth=f"{proxy.user}:{proxy.password}")
    return urllib3.ProxyManager(
        str(proxy.url),
        proxy_headers=login,
        maxsize=kept_connections,
        ssl_context=context,
        proxy_ssl_context=context,
    )
