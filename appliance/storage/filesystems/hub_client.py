"""Calls of huggingface_hub whose requests go over the session of a store, and not over a client of its own.

So proxies, certificates, logins, redirects, timeouts and errors are those of every other store; so is the number of
attempts, because huggingface_hub sleeps in its thread for as long as the hub asks. `HF_HUB_OFFLINE`, which keeps the
engines of this process from the network, stays in force for everything else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from functools import cache, cached_property
from typing import Any, ParamSpec, TypeVar

import aiohttp
from fsspec.asyn import get_loop
from yarl import URL

from appliance.core.concurrency import in_thread
from appliance.core.errors import StorageUnavailableError
from appliance.storage.filesystems.http_session import HttpSession, read_body

P = ParamSpec("P")
T = TypeVar("T")

_MAX_PAGE_BYTES = 64 << 20

_send: ContextVar[Callable[[str], tuple[Mapping[str, str], bytes]] | None] = ContextVar("hub_request", default=None)
"""Sends the requests of this thread."""


class HubClient:
    """Calls huggingface_hub for one store; `endpoint` is the address of the hub, without a `/` at its end."""

    def __init__(self, session: HttpSession, endpoint: str, uri: str) -> None:
        self._session = session
        self._endpoint = endpoint
        self._uri = uri

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of a function of huggingface_hub.

        Raises:
            StorageUnavailableError: the response is not one of a hub.
            aiohttp.ClientError: there is no response, or its status is one of failure.
        """
        requests: list[Future[tuple[Mapping[str, str], bytes]]] = []

        def send(url: str) -> tuple[Mapping[str, str], bytes]:
            requests.append(asyncio.run_coroutine_threadsafe(self._get(self._url(url)), get_loop()))
            return requests[-1].result()

        def run() -> T:
            _route_requests()
            _send.set(send)
            return function(*args, **kwargs)

        try:
            return await in_thread(run)
        except aiohttp.ClientError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StorageUnavailableError(
                f"{self._uri}: the response is not a hub's; try again, or check HF_ENDPOINT"
            ) from error
        finally:
            # After a cancellation, nobody waits for the thread.
            for request in requests:
                request.cancel()

    def _url(self, url: str) -> URL:
        if not url.startswith(f"{self._endpoint}/"):
            # The next page of a mirror's listing is often one of the hub that it mirrors.
            url = self._endpoint + url[url.index("/api/models/") :]
        return URL(url, encoded=True)

    async def _get(self, url: URL) -> tuple[Mapping[str, str], bytes]:
        """Return the headers and the body of a response that huggingface_hub reads."""
        async with self._session.get(self._uri, url) as response:
            headers = {"Link": ", ".join(response.headers.getall("Link", ()))}
            return headers, await read_body(self._uri, response, _MAX_PAGE_BYTES)


@cache
def _route_requests() -> None:
    """Have huggingface_hub use a client that asks which store a request belongs to."""
    import httpx2
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    class Client(httpx2.Client):
        """A client without connections; those of requests that are not ours are in the library's own."""

        @cached_property
        def _default(self) -> httpx2.Client:
            # When it is needed: it refuses proxies that ours knows.
            return default_client_factory()

        def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
            send = _send.get()
            if send is None:
                return self._default.send(request, **options)
            headers, body = send(str(request.url))
            return httpx2.Response(200, headers=headers, content=body, request=request)

    set_client_factory(lambda: Client(trust_env=False, timeout=None))
