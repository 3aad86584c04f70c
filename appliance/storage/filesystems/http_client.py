"""Ask HTTP servers for files and parts of files.

In threads and with urllib3: what an event loop reads, it reads on one processor, and copies more than once.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from threading import Lock

import urllib3
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse
from yarl import URL

from appliance.config.storage import TransferConfig
from appliance.core.errors import StorageError, StorageUnavailableError
from appliance.core.threads import opened_in_thread
from appliance.storage.filesystems import http_errors
from appliance.storage.filesystems.http_body import HttpResponse, ResponseBody
from appliance.storage.filesystems.http_errors import AccessHint
from appliance.storage.filesystems.proxy_env import connections, login_for

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 10

# Connections to one host that are kept for the next request; a listing has more at once than a small transfer.
_FEWEST_KEPT = 16

_LONGEST_REFUSAL = 4096

# As http.client numbers it; its answers may end with their connection.
_HTTP_1_0 = 10

Headers = Callable[[URL], Mapping[str, str]]
"""
The headers that a URL may see: asked again after each redirect, so that no credential goes to another host.
"""


Refusal = Callable[[HttpResponse, str], StorageError | None]
"""
The error for an answer that is no success, given what its body says; None leaves it to its status.
"""


def range_header(start: int, end: int) -> Mapping[str, str]:
    """The headers that ask for bytes as they are, from `start` up to `end`."""
    return {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}


class HttpClient:
    """An HTTP client for one store; it connects when it is first asked."""

    def __init__(self, transfer: TransferConfig) -> None:
        connect, silence = http_errors.patience(transfer)
        self._timeout = urllib3.Timeout(connect=connect, read=silence)
        self._kept = max(_FEWEST_KEPT, transfer.parallel)
        self._finding = Lock()
        self._ways: dict[URL, tuple[urllib3.PoolManager, Mapping[str, str]]] = {}

    @asynccontextmanager
    async def get(
        self,
        what: str,
        url: URL,
        headers: Headers,
        access: AccessHint,
        refusal: Refusal = lambda *_: None,
        also: int = 200,
    ) -> AsyncIterator[HttpResponse]:
        """The answer to a GET, after redirects; `also` is a status that is as good as a success.

        Raises:
            StorageError: it is no success, or there is none.
        """
        async with opened_in_thread(self._follow, what, url, headers) as answer:
            if answer.status >= 400 and answer.status != also:
                raise await _refused(answer, access, refusal)
            yield answer

    async def close(self) -> None:
        """Let go of every connection."""
        for pools, _ in self._ways.values():
            pools.clear()

    def _follow(self, what: str, url: URL, headers: Headers) -> HttpResponse:
        for _ in range(_MOST_REDIRECTS):
            response = self._ask(what, url, headers(url))
            body = ResponseBody(what, response)
            if response.status not in _REDIRECTS or "Location" not in response.headers:
                return HttpResponse(what, url, response.status, response.reason or "", response.headers, body)
            # Read to its end, the connection can be used again.
            with suppress(StorageError):
                body.read(_LONGEST_REFUSAL)
            body.close()
            url = _target(what, url, response.headers["Location"])
        raise StorageError(f"{what}: the server leads in circles; check the URI")

    def _ask(self, what: str, url: URL, headers: Mapping[str, str]) -> BaseHTTPResponse:
        pools, login = self._way_to(url.origin())
        is_said = any(name.lower() == "authorization" for name in headers)
        try:
            # Not urllib3's own redirects: they take only a few headers out for another host.
            response = pools.request(
                "GET",
                str(url),
                headers={**headers, **({} if is_said else login)},
                timeout=self._timeout,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except (HTTPError, OSError, ValueError) as error:
            raise http_errors.unanswered(what, error) from error
        if response.version > _HTTP_1_0 and not http_errors.is_framed(response.status, response.headers):
            response.close()
            raise StorageUnavailableError(f"{what}: the answer has no end; try again, or check proxies on the way")
        return response

    def _way_to(self, origin: URL) -> tuple[urllib3.PoolManager, Mapping[str, str]]:
        """Connections to a host, and the login that the user's environment has for it."""
        with self._finding:
            if origin not in self._ways:
                self._ways[origin] = connections(origin, self._kept), login_for(origin)
            return self._ways[origin]


def _target(what: str, url: URL, location: str) -> URL:
    try:
        target = url.join(URL(location, encoded=location.isascii()))
    except ValueError:
        target = URL()
    if target.scheme not in ("http", "https") or not target.host:
        raise StorageError(f"{what}: the server leads to something that is no web address; check the URI")
    return target


async def _refused(answer: HttpResponse, access: AccessHint, refusal: Refusal) -> StorageError:
    said = ""
    with suppress(StorageError):
        said = (await answer.read(_LONGEST_REFUSAL)).decode(errors="replace")
    wait = http_errors.retry_after(answer.headers.get("Retry-After"))
    return refusal(answer, said) or http_errors.refused(
        answer.what, answer.status, answer.reason, access, retry_after=wait
    )


def without_user(url: URL) -> tuple[URL, Mapping[str, str]]:
    """A URL without the user and password in it, and the header that says them."""
    if url.user is None and url.password is None:
        return url, {}
    login = base64.b64encode(f"{url.user or ''}:{url.password or ''}".encode()).decode()
    return url.with_user(None), {"Authorization": f"Basic {login}"}


def only_for(home: URL, given: Mapping[str, str]) -> Headers:
    """These headers for the host of a URL; for any other only what of them says which bytes are wanted."""
    elsewhere = {name: value for name, value in given.items() if name in ("Range", "Accept-Encoding")}
    return lambda url: given if url.origin() == home.origin() else elsewhere
