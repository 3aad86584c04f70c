"""
Ask HTTP servers for files and parts of files.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import aiohttp
from yarl import URL

from appliance.errors import StorageError, StorageUnavailableError
from appliance.storage.remote import answers
from appliance.storage.remote.answers import Access
from appliance.storage.section import TransferSection

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 10
_BUFFER = 1 << 18

Headers = Callable[[URL], Mapping[str, str]]
"""
The headers that a URL may see: asked again after each redirect, so that no credential goes to another host.
"""

Refusal = Callable[[aiohttp.ClientResponse, str], StorageError | None]
"""
The error for an answer that is no success, given what its body says; None leaves it to its status.
"""


def range_header(start: int, end: int) -> Mapping[str, str]:
    """
    The headers that ask for bytes as they are, from `start` up to `end`.
    """
    return {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}


class Web:
    """
    An HTTP client for one store; made outside of any loop, it connects when it is first asked.
    """

    def __init__(self, transfer: TransferSection) -> None:
        connect, silence = answers.patience(transfer)
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=silence)
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def get(
        self,
        what: str,
        url: URL,
        headers: Headers,
        access: Access,
        refusal: Refusal = lambda *_: None,
        also: int = 200,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """
        The answer to a GET, after redirects; `also` is a status that is as good as a success.

        Raises:
            StorageError: it is no success, or there is none, or it breaks off while it is read.
        """
        try:
            async with AsyncExitStack() as stack:
                response = await self._follow(what, url, headers, stack)
                if response.status >= 400 and response.status != also:
                    raise await _refused(what, response, access, refusal)
                yield response
        except (aiohttp.ClientError, OSError) as error:
            raise answers.unanswered(what, error) from error

    async def close(self) -> None:
        """
        Let go of every connection.
        """
        if self._session:
            await self._session.close()

    async def _follow(self, what: str, url: URL, headers: Headers, stack: AsyncExitStack) -> aiohttp.ClientResponse:
        for _ in range(_MOST_REDIRECTS):
            # Not aiohttp's own redirects: they take only the Authorization header out for another host.
            request = self._opened().get(url, headers=headers(url), allow_redirects=False)
            response = await stack.enter_async_context(request)
            if response.status not in _REDIRECTS or "Location" not in response.headers:
                return response
            url = _target(what, url, response.headers["Location"])
            response.release()
        raise StorageError(f"{what}: the server leads in circles; check the URI")

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=self._timeout,
                # How many requests run at once is the transfer's business.
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=_BUFFER,
                # The user's proxies, and logins in the file .netrc.
                trust_env=True,
            )
        return self._session


def _target(what: str, url: URL, location: str) -> URL:
    try:
        target = url.join(URL(location, encoded=location.isascii()))
    except ValueError:
        target = URL()
    if target.scheme not in ("http", "https") or not target.host:
        raise StorageError(f"{what}: the server leads to something that is no web address; check the URI")
    return target


async def part(what: str, response: aiohttp.ClientResponse, size: int, start: int, end: int) -> AsyncGenerator[bytes]:
    """
    The body of an answer that should have the bytes from `start` up to `end` of a file of `size` bytes.

    Raises:
        ArtifactChangedError: the file has another size by now.
        StorageUnavailableError: these are other bytes, or too few.
    """
    _check(what, response, size, start, end)
    missing = end - start
    async for block in response.content.iter_any():
        missing -= len(block)
        if missing < 0:
            break
        yield block
    if missing:
        raise answers.cut(what, missing)


def _check(what: str, response: aiohttp.ClientResponse, size: int, start: int, end: int) -> None:
    if encoding := response.headers.get("Content-Encoding", "").replace("identity", ""):
        raise StorageError(f"{what}: comes with content encoding {encoding!r}; have it served as it is stored")
    if response.status == 200 and (start, end) == (0, size):
        return
    if response.status not in (200, 206):
        raise StorageUnavailableError(f"{what}: the server answers {response.status}; try again")
    answers.check_part(what, response.headers.get("Content-Range"), size, start, end)


async def _refused(what: str, response: aiohttp.ClientResponse, access: Access, refusal: Refusal) -> StorageError:
    said = ""
    with suppress(aiohttp.ClientError, OSError):
        said = (await response.content.read(4096)).decode(errors="replace")
    wait = answers.retry_after(response.headers.get("Retry-After"))
    return refusal(response, said) or answers.refused(
        what, response.status, response.reason or "", access, retry_after=wait
    )


def without_user(url: URL) -> tuple[URL, Mapping[str, str]]:
    """
    A URL without the user and password in it, and the header that says them.
    """
    if url.user is None and url.password is None:
        return url, {}
    login = base64.b64encode(f"{url.user or ''}:{url.password or ''}".encode()).decode()
    return url.with_user(None), {"Authorization": f"Basic {login}"}


def only_for(home: URL, given: Mapping[str, str]) -> Headers:
    """
    These headers for the host of a URL; for any other only what of them says which bytes are wanted.
    """
    elsewhere = {name: value for name, value in given.items() if name in ("Range", "Accept-Encoding")}
    return lambda url: given if url.origin() == home.origin() else elsewhere
