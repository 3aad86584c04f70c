"""The HTTP client of adapters: JSON requests to a target, its responses, and its errors in our own form."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec
from yarl import URL

from appliance.config.upstreams import UpstreamConfig
from appliance.core import sse
from appliance.core.concurrency import off_loop
from appliance.core.errors import GatewayError, RequestError
from appliance.core.http import join_url
from appliance.core.openai_types import Json
from appliance.proxy.headers import forward_request_headers

if TYPE_CHECKING:
    # aiohttp takes 0.2 s to import, and the checks of a config import this module.
    from appliance.proxy.client import UpstreamClient
    from appliance.proxy.response import UpstreamResponse

Headers = Mapping[str, str]

MAX_RESPONSE_BYTES = 128 * 1024 * 1024
"""Largest response, or event, of a model of the same file; a server elsewhere has a limit in its config."""

# A shorter secret is a word, which must not be removed from responses.
_MIN_SECRET = 8

# A longer text, such as a page of HTML, does not help a client.
_MAX_ERROR_TEXT = 500


class ServiceClient:
    """Sends JSON to a server elsewhere."""

    def __init__(self, client: UpstreamClient) -> None:
        self._client = client
        self._secrets = tuple(_secrets(client.config))
        self.consecutive_failures = 0
        """Requests in a row without any response."""

    def openai_url(self, path: str) -> URL:
        """Return the URL of a route of OpenAI's protocol."""
        return join_url(self._client.config.url, path)

    def url(self, path: str) -> URL:
        """Return the target's URL with a path after it, unchanged; the URL's own query comes first."""
        base, rest = URL(self._client.config.url, encoded=True), URL(path, encoded=True)
        if not path:
            return base
        query = "&".join(part for part in (base.raw_query_string, rest.raw_query_string) if part)
        joined = f"{base.origin()}{base.raw_path.rstrip('/')}{rest.raw_path}"
        return URL(f"{joined}?{query}" if query else joined, encoded=True)

    async def post(self, url: URL, body: bytes, headers: Headers) -> Any:  # Any: JSON values
        """Return the JSON of the response."""
        return await self._read(await self._send(url, body, headers))

    async def stream(self, url: URL, body: bytes, headers: Headers, *, has_lines: bool = False) -> Any:  # Any: JSON
        """Return the JSON of each server-sent event; without events that of each line, or of the whole response."""
        response = await self._send(url, body, headers)
        has_events = response.is_event_stream
        if response.status >= 300 or not (has_events or has_lines):
            return await self._read(response)
        return read_events(response.read_pieces(), has_events=has_events, max_bytes=response.max_bytes)

    async def close(self) -> None:
        """Close all connections; safe to call twice."""
        await self._client.close()

    async def _read(self, response: UpstreamResponse) -> Any:  # Any: JSON values
        body = await response.read()
        # Some servers quote an unknown key in their errors, which clients and probes see.
        for secret in self._secrets:
            body = body.replace(secret, b"***")
        return await off_loop(len(body), decode_response, response.status, body, response.headers)

    async def _send(self, url: URL, body: bytes, headers: Headers) -> UpstreamResponse:
        sent = forward_request_headers(headers) | {
            "content-type": "application/json",
            "accept": f"application/json, {sse.MEDIA_TYPE}",
        }
        try:
            response = await self._client.send_to(url, body, sent)
        except GatewayError:
            self.consecutive_failures += 1
            raise
        self.consecutive_failures = 0
        return response


def _secrets(config: UpstreamConfig) -> Iterator[bytes]:
    for each in (*config.headers.values(), *([config.api_key] if config.api_key else [])):
        if len(each.get_secret_value()) >= _MIN_SECRET:
            yield each.get_secret_value().encode()


def decode_response(status: int, body: bytes, headers: Headers) -> Any:  # Any: JSON values
    """Return the JSON of a response; `headers` have lower-case names."""
    if status >= 400:
        raise _refusal(status, body, headers)
    if status >= 300:
        raise GatewayError(f"The target answered {status}, a redirect, which is not followed")
    try:
        decoded = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        raise GatewayError(f"The target's response is not JSON: {error}") from error
    _require_no_error(decoded)
    return decoded


async def read_events(
    stream: AsyncGenerator[bytes], *, has_events: bool, max_bytes: int = MAX_RESPONSE_BYTES
) -> AsyncGenerator[Any]:  # Any: JSON values
    """Yield the JSON of each event, or of each line if there are no events; closing it closes the stream."""
    async with aclosing(sse.read_json(stream, has_events=has_events, max_bytes=max_bytes)) as events:
        async for event in events:
            _require_no_error(event)
            yield event


def require_object(value: Any) -> Json:  # Any: JSON values
    """Return a value that must be an object."""
    if not isinstance(value, dict):
        raise GatewayError("The target's response is not a JSON object")
    return value


def _require_no_error(value: Any) -> None:  # Any: JSON values
    """Raise what calls itself an error, even with status 200."""
    if isinstance(value, dict) and (error := value.get("error")):
        code = error.get("code") if isinstance(error, dict) else None
        raise _request_error(value, code if isinstance(code, int) and 400 <= code <= 599 else 502)


def _refusal(status: int, body: bytes, headers: Headers) -> RequestError:
    """Return the error for a response with a status of 400 or more, with its `Retry-After`."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = body.decode("utf-8", "replace").strip()[:_MAX_ERROR_TEXT]
    error = _request_error(value, status)
    retry_after = headers.get("retry-after", "")
    if retry_after.isdecimal():
        error.retry_after = int(retry_after)
    elif retry_after.isascii() and retry_after.isprintable() and retry_after:
        # A date.
        error.headers = {"Retry-After": retry_after}
    return error


def _request_error(value: Any, status: int) -> RequestError:  # Any: JSON values
    """Return the error for what a target says: OpenAI's form, FastAPI's, the Open Inference Protocol's, or a text."""
    error = value.get("error", value) if isinstance(value, dict) else value
    fields = error if isinstance(error, dict) else {"message": error}
    message = next((fields[key] for key in ("message", "detail", "error") if fields.get(key)), None)
    if message is None or (isinstance(message, str) and message.lstrip().startswith("<")):
        message = f"the target answered {status}"
    text = message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)
    code = fields.get("code")
    # vLLM has the status here, older versions as a text.
    word = code if isinstance(code, str) and not code.isdecimal() else None
    param = fields.get("param")
    return RequestError(text, param=param if isinstance(param, str) else None, code=word, status=status)
