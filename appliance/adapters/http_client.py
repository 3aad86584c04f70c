"""JSON over HTTP: what goes to a target, and what it says."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec
from yarl import URL

from appliance.adapters.error_mapping import of_error, refusal
from appliance.adapters.messages import Json
from appliance.config.upstreams import UpstreamConfig
from appliance.core import sse
from appliance.core.concurrency import off_loop
from appliance.core.errors import GatewayError
from appliance.core.http import join_url
from appliance.proxy.headers import forward_request_headers

if TYPE_CHECKING:
    # aiohttp takes 0.2 s to import, and the config's validators import this module.
    from appliance.proxy.client import UpstreamClient
    from appliance.proxy.response import UpstreamResponse

Headers = Mapping[str, str]

LONGEST_BYTES = 128 * 1024 * 1024
"""
Most that is held of an answer of a model of the same file; a proxy among them has a bound of its own.
"""

# A shorter one is a word, which would blot out answers.
_SHORTEST_SECRET = 8


class ServiceClient:
    """A server elsewhere that takes JSON and gives it."""

    def __init__(self, client: UpstreamClient) -> None:
        self._client = client
        self._secrets = tuple(_secrets(client.config))
        self.silences = 0
        """Requests in a row that got no answer at all."""

    def route(self, path: str) -> URL:
        """The URL of a route of OpenAI's protocol."""
        return join_url(self._client.config.url, path)

    def under(self, path: str) -> URL:
        """The URL with a path after it, as it stands; the URL's query comes first."""
        url, rest = URL(self._client.config.url, encoded=True), URL(path, encoded=True)
        if not path:
            return url
        query = "&".join(part for part in (url.raw_query_string, rest.raw_query_string) if part)
        whole = f"{url.origin()}{url.raw_path.rstrip('/')}{rest.raw_path}"
        return URL(f"{whole}?{query}" if query else whole, encoded=True)

    async def post(self, url: URL, body: bytes, headers: Headers) -> Any:  # Any: JSON values
        """The JSON it answers.

        Raises:
            CallError: it refuses.
            GatewayError: it does not answer, or not with JSON.
        """
        return await self._whole(await self._send(url, body, headers))

    async def stream(self, url: URL, body: bytes, headers: Headers) -> Any | AsyncGenerator[Any]:  # Any: JSON values
        """The JSON of each server-sent event, or that of the whole answer where it has no events.

        Raises:
            CallError: it refuses.
            GatewayError: it does not answer, or not with JSON.
        """
        answer = await self._send(url, body, headers)
        if answer.is_event_stream and answer.status < 400:
            return events(answer.read_pieces(), is_sse=True, longest=answer.max_bytes)
        return await self._whole(answer)

    async def lines(self, url: URL, body: bytes, headers: Headers) -> AsyncGenerator[Any]:  # Any: JSON values
        """The JSON of each server-sent event, or of each line: services name those in many ways, or not at all.

        Raises:
            CallError: it refuses.
            GatewayError: it does not answer, or not with JSON.
        """
        answer = await self._send(url, body, headers)
        if answer.status >= 300:
            await self._whole(answer)
        return events(answer.read_pieces(), is_sse=answer.is_event_stream, longest=answer.max_bytes)

    async def close(self) -> None:
        """Let go of connections; safe to call twice."""
        await self._client.close()

    async def _whole(self, answer: UpstreamResponse) -> Any:  # Any: JSON values
        said = await answer.read()
        # Some say which key it was that they do not know, and what they say goes to clients and into probes.
        for secret in self._secrets:
            said = said.replace(secret, b"***")
        return await off_loop(len(said), decoded, answer.status, said)

    async def _send(self, url: URL, body: bytes, headers: Headers) -> UpstreamResponse:
        sent = forward_request_headers(headers) | {
            "content-type": "application/json",
            "accept": f"application/json, {sse.MEDIA_TYPE}",
        }
        try:
            answer = await self._client.send_to(url, body, sent)
        except GatewayError:
            self.silences += 1
            raise
        self.silences = 0
        return answer


def _secrets(config: UpstreamConfig) -> Iterator[bytes]:
    hidden = [*config.headers.values(), *([config.api_key] if config.api_key else [])]
    for each in hidden:
        if len(each.get_secret_value()) >= _SHORTEST_SECRET:
            yield each.get_secret_value().encode()


def decoded(status: int, body: bytes) -> Any:  # Any: JSON values
    """The JSON of a whole answer.

    Raises:
        CallError: it says that it refuses.
        GatewayError: it is no JSON.
    """
    if status >= 400:
        raise refusal(status, body)
    if status >= 300:
        raise GatewayError(f"The target answered {status}, which leads elsewhere; nobody follows it there")
    try:
        said = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        raise GatewayError(f"The target's answer is no JSON: {error}") from error
    _require_good(said)
    return said


async def events(
    stream: AsyncGenerator[bytes], *, is_sse: bool, longest: int = LONGEST_BYTES
) -> AsyncGenerator[Any]:  # Any: JSON values
    """The JSON of each event or line.

    Raises:
        CallError: one of them says that something went wrong.
        GatewayError: one is no JSON, or has more than `longest` bytes.
    """
    async with aclosing(sse.read_json(stream, has_events=is_sse, max_bytes=longest)) as said:
        async for event in said:
            _require_good(event)
            yield event


def _require_good(said: Any) -> None:  # Any: JSON values
    """Refuse what calls itself an error, be its status 200."""
    if isinstance(said, dict) and said.get("error"):
        raise of_error(said, _status_of(said["error"]))


def _status_of(error: Any) -> int:  # Any: JSON values
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code <= 599 else 502


def object_of(said: Any) -> Json:  # Any: JSON values
    """The same, where it must be an object.

    Raises:
        GatewayError: it is something else.
    """
    if not isinstance(said, dict):
        raise GatewayError("The target's answer is no JSON object")
    return said
