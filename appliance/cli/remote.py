"""A running server, as the commands that take its URL see it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import click
from yarl import URL

from appliance.core.errors import ApplianceError

url_argument = click.argument("url", default="http://localhost:8080")
api_key_option = click.option(
    "--api-key", envvar="OPENAI_API_KEY", show_envvar=True, help="Key of the server, if it requires one."
)

_CONNECT_SECONDS = 10.0
_QUESTION_SECONDS = 30.0


class RemoteError(ApplianceError):
    """A running server cannot be asked."""


class RemoteServer:
    """The HTTP client of one server; `session` has its address and key."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    async def get(self, path: str, *statuses: int) -> str:
        """The body of a GET request, with one of the statuses, by default 200.

        Raises:
            RemoteError: the server cannot be reached, or answers with another status.
        """
        try:
            timeout = aiohttp.ClientTimeout(total=_QUESTION_SECONDS)
            async with self.session.get(path.removeprefix("/"), timeout=timeout) as response:
                text = await response.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self.unreachable(error) from error
        if response.status not in (statuses or (200,)):
            raise RemoteError(f"{self.url}{path} {refusal(response.status, text)}")
        return text

    async def get_json(self, path: str, *statuses: int) -> Any:  # Any: JSON
        """The JSON of a GET request.

        Raises:
            RemoteError: the server cannot be reached, or answers with another status or something else.
        """
        try:
            return json.loads(await self.get(path, *statuses))
        except ValueError as error:
            raise RemoteError(f"{self.url}{path} answers with no JSON; is it the URL of the server?") from error

    async def models(self) -> Sequence[Mapping[str, Any]]:  # Any: JSON
        """The entries of `/v1/models`.

        Raises:
            RemoteError: the server cannot be asked, or does not speak OpenAI's protocol.
        """
        answer = await self.get_json("/v1/models")
        if not isinstance(answer, dict) or not isinstance(answer.get("data"), list):
            raise RemoteError(f"{self.url}/v1/models answers with no list of models; is it the URL of the server?")
        models: Sequence[Mapping[str, Any]] = answer["data"]  # Any: JSON
        return models

    def unreachable(self, error: Exception) -> RemoteError:
        """The error of a request without an answer."""
        cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
        reason = getattr(cause, "strerror", None) or str(cause) or type(error).__name__
        return RemoteError(f"{self.url} does not answer: {reason}; check the URL, and that the server runs")


def refusal(status: int, body: str) -> str:
    """What an answer with an error says, and what to do about it."""
    try:
        error = json.loads(body)["error"]
        message = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        message = body[:200].strip()
    hint = "; give a key with --api-key or OPENAI_API_KEY" if status == 401 else ""
    return f"answers with status {status}: {message}{hint}" if message else f"answers with status {status}{hint}"


@asynccontextmanager
async def connected(url: str, api_key: str | None) -> AsyncIterator[RemoteServer]:
    """A client of the server at a URL, with or without `/v1`.

    Raises:
        click.BadParameter: it is no URL.
    """
    base = URL(url if "://" in url else f"http://{url}")
    if base.scheme not in ("http", "https") or not base.host or base.query_string or base.fragment:
        message = "must be http:// or https://, a host, and an optional port and path, without a query"
        raise click.BadParameter(message, param_hint="URL")
    origin = str(base).rstrip("/").removesuffix("/v1")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        f"{origin}/", headers=headers, timeout=timeout, connector=connector, trust_env=True
    ) as session:
        yield RemoteServer(origin, session)
