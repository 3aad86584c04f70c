"""Where payloads go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from appliance.config.telemetry import PayloadLogConfig
from appliance.telemetry.payloads.event import MEDIA_TYPE

if TYPE_CHECKING:
    from aiohttp import ClientSession

_SECONDS = 10.0


class Sink(Protocol):
    """Takes events."""

    async def send(self, events: Sequence[bytes]) -> list[str]:
        """Bring the events where they belong; why it failed, once for each that did not get there."""

    async def close(self) -> None:
        """Let go of everything; safe to call twice."""


def sink_of(config: PayloadLogConfig) -> Sink:
    """The sink that a section names."""
    return FileSink(Path(config.sink)) if config.sink.startswith("/") else HttpSink(config)


class FileSink:
    """Lines at the end of a file, which is opened each time: it may be moved away meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def send(self, events: Sequence[bytes]) -> list[str]:
        try:
            await asyncio.to_thread(self._append, b"".join(each + b"\n" for each in events))
        except OSError as error:
            return [error.strerror or type(error).__name__] * len(events)
        return []

    async def close(self) -> None:
        return

    def _append(self, lines: bytes) -> None:
        # One write: other workers append to the same file.
        with self._path.open("ab", buffering=0) as file:
            file.write(lines)


class HttpSink:
    """A URL that each event is posted to."""

    def __init__(self, config: PayloadLogConfig) -> None:
        self._url = config.sink
        self._headers = {name: value.get_secret_value() for name, value in config.headers.items()}
        self._session: ClientSession | None = None

    async def send(self, events: Sequence[bytes]) -> list[str]:
        if self._session is None:
            self._session = self._open()
        session = self._session
        ends = await asyncio.gather(*(self._post(session, each) for each in events))
        return [why for why in ends if why is not None]

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _post(self, session: ClientSession, event: bytes) -> str | None:
        from aiohttp import ClientError

        try:
            # Nowhere else than to the configured address: a redirect would take what people said along.
            async with session.post(self._url, data=event, allow_redirects=False) as response:
                return None if response.status < 300 else f"status {response.status}"
        except (ClientError, TimeoutError, OSError) as error:
            return type(error).__name__

    def _open(self) -> ClientSession:
        from aiohttp import ClientSession, ClientTimeout, DummyCookieJar

        return ClientSession(
            headers={**self._headers, "content-type": MEDIA_TYPE},
            timeout=ClientTimeout(total=_SECONDS),
            cookie_jar=DummyCookieJar(),
        )
