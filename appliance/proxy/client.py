"""The HTTP client of one upstream."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from importlib.metadata import version
from io import BytesIO
from typing import TYPE_CHECKING

from yarl import URL

from appliance.config.upstreams import UpstreamConfig
from appliance.core.errors import GatewayError
from appliance.proxy.response import UpstreamResponse

if TYPE_CHECKING:
    from appliance.proxy.connection import Connections

_LONG_BYTES = 256 * 1024

# v1, v4, v1beta, at the end of a path or within it, such as ``/v1beta/openai``.
_VERSION = re.compile(r"v\d+[a-z0-9]*")


class UpstreamClient:
    """Sends requests to one upstream; keeps connections open, one for each concurrent request."""

    def __init__(self, config: UpstreamConfig) -> None:
        self.config = config
        self._connections: Connections | None = None
        self._default_headers = {"user-agent": f"appliance/{version('appliance')}", "accept-encoding": "identity"}
        if key := config.api_key.get_secret_value() if config.api_key else "":
            self._default_headers["authorization"] = f"Bearer {key}"
        self._fixed_headers = {name.lower(): value.get_secret_value() for name, value in config.headers.items()}

    async def send(
        self, path: str, body: bytes | None, headers: Mapping[str, str] = {}, *, query: str = ""
    ) -> UpstreamResponse:
        """POST `body` to a route of OpenAI's protocol such as ``/v1/embeddings``; None sends a GET.

        `headers` have lower-case names and went through `forward_request_headers`. A body is JSON unless they say
        otherwise.

        Raises:
            GatewayError: there is no response.
            GatewayTimeoutError: there is no response in time.
        """
        return await self.send_to(join_url(self.config.url, path, query), body, headers)

    async def send_to(self, url: URL, body: bytes | None, headers: Mapping[str, str] = {}) -> UpstreamResponse:
        """Send the same to any URL of the upstream.

        Raises:
            GatewayError: there is no response.
            GatewayTimeoutError: there is no response in time.
        """
        from appliance.proxy.connection import CONNECTION_ERRORS, Connections, gateway_error

        if self._connections is None:
            self._connections = Connections.open(self.config)
        connections = self._connections
        content_type = {} if body is None else {"content-type": "application/json"}
        timeouts = self.config.timeouts
        sent_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(min(timeouts.first_byte_seconds, timeouts.total_seconds or float("inf"))):
                response = await connections.session.request(
                    "GET" if body is None else "POST",
                    url,
                    # aiohttp sends a file piece by piece, so that other requests are not delayed.
                    data=BytesIO(body) if body is not None and len(body) > _LONG_BYTES else body,
                    headers={
                        **self._default_headers,
                        **content_type,
                        **headers,
                        **self._fixed_headers,
                        **connections.headers,
                    },
                    proxy_headers=connections.proxy_headers,
                    # A redirect would send the API key to another address.
                    allow_redirects=False,
                )
        except CONNECTION_ERRORS as error:
            raise gateway_error(error) from error
        try:
            _require_final(response.status)
            return UpstreamResponse(response, self.config, sent_at)
        except GatewayError:
            response.close()
            raise

    async def close(self) -> None:
        """Close every connection; safe to call twice."""
        if self._connections is not None:
            await self._connections.session.close()
            self._connections = None


def join_url(base: str, path: str, query: str = "") -> URL:
    """
    Return the URL of a route such as ``/v1/embeddings`` or ``/tokenize`` under a base URL with or without a version.

    A path of version 1 is appended to the base's own version, any other path replaces it.
    The base's query, in which some services expect their API version, comes before the client's.
    """
    url = URL(base)
    parts = [part for part in url.raw_path.split("/") if part]
    if not any(_VERSION.fullmatch(part) for part in parts):
        parts.append("v1")
    if path.startswith("/v1/"):
        path = path.removeprefix("/v1")
    elif _VERSION.fullmatch(parts[-1]):
        parts.pop()
    queries = "&".join(part for part in (url.raw_query_string, query) if part)
    joined = f"{url.origin()}/{'/'.join(parts)}".rstrip("/") + path
    return URL(f"{joined}?{queries}" if queries else joined, encoded=True)


def _require_final(status: int) -> None:
    """Return if a client can get this status (RFC 9110, section 15)."""
    if 300 <= status < 400:
        raise GatewayError("The upstream redirects, and redirects are not followed; set its url to the target.")
    if not 200 <= status < 600:
        raise GatewayError(f"The upstream answered with the status {status}, which is not a final response.")
