"""The connections to one upstream."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from importlib.metadata import version
from io import BytesIO
from typing import TYPE_CHECKING

from yarl import URL

from appliance.config.upstreams import UpstreamConfig
from appliance.core.errors import GatewayError
from appliance.proxy.errors import broken, unanswered
from appliance.proxy.response import UpstreamResponse
from appliance.proxy.url import join

if TYPE_CHECKING:
    from aiohttp import ClientResponse

    from appliance.proxy.connection import Connections

_LONG_BYTES = 256 * 1024


class UpstreamClient:
    """Asks one upstream; connections are kept, and as many as there are requests."""

    def __init__(self, config: UpstreamConfig) -> None:
        self.config = config
        self._connections: Connections | None = None
        self._own = {"user-agent": f"appliance/{version('appliance')}", "accept-encoding": "identity"}
        key = config.api_key.get_secret_value() if config.api_key else ""
        self._authorization = {"authorization": f"Bearer {key}"} if key else {}
        self._set = {name.lower(): value.get_secret_value() for name, value in config.headers.items()}

    async def send(
        self, path: str, body: bytes | None, headers: Mapping[str, str] = {}, *, query: str = ""
    ) -> UpstreamResponse:
        """POST `body` to a route of OpenAI's protocol such as ``/v1/embeddings``; None makes it a GET.

        `headers`, by lower-case name, have gone through `headers.upward`; a body is JSON unless they say otherwise.

        Raises:
            GatewayError: there is no answer.
            GatewayTimeoutError: there is none in time.
        """
        return await self.send_to(join(self.config.url, path, query), body, headers)

    async def send_to(self, url: URL, body: bytes | None, headers: Mapping[str, str] = {}) -> UpstreamResponse:
        """The same, for any URL of the upstream.

        Raises:
            GatewayError: there is no answer.
            GatewayTimeoutError: there is none in time.
        """
        asked = asyncio.get_running_loop().time()
        kind = {} if body is None else {"content-type": "application/json"}
        sent = {**self._own, **kind, **self._authorization, **headers, **self._set}
        try:
            async with asyncio.timeout(self._until_first_byte):
                response = await self._request(url, body, sent)
        except broken() as error:
            raise unanswered(error) from error
        try:
            _require_final(response.status)
            return UpstreamResponse(response, self.config, asked)
        except GatewayError:
            response.close()
            raise

    async def close(self) -> None:
        """Close every connection; safe to call twice."""
        if self._connections is not None:
            await self._connections.session.close()
            self._connections = None

    @property
    def _until_first_byte(self) -> float:
        timeouts = self.config.timeouts
        return min(timeouts.first_byte_seconds, timeouts.total_seconds or timeouts.first_byte_seconds)

    async def _request(self, url: URL, body: bytes | None, headers: Mapping[str, str]) -> ClientResponse:
        if self._connections is None:
            from appliance.proxy.connection import Connections

            self._connections = Connections.open(self.config)
        connections = self._connections
        return await connections.session.request(
            "GET" if body is None else "POST",
            url,
            data=_data(body),
            headers={**headers, **connections.headers},
            proxy_headers=connections.proxy_headers,
            # Nowhere else than to the configured address: a redirect would take the key along.
            allow_redirects=False,
        )


def _require_final(status: int) -> None:
    """Return for a status that an answer to a client can have (RFC 9110, section 15)."""
    if 300 <= status < 400:
        raise GatewayError("The upstream redirects, which is not followed; set its url to where that leads.")
    if not 200 <= status < 600:
        raise GatewayError(f"The upstream answered with the status {status}, which ends no request.")


def _data(body: bytes | None) -> bytes | BytesIO | None:
    """The body as aiohttp wants it: what is long piece by piece, so that others get their turn."""
    return BytesIO(body) if body is not None and len(body) > _LONG_BYTES else body
