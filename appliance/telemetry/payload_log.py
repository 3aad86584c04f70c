"""The payload log: bodies of requests and responses as CloudEvents in structured JSON, sent beside the requests.

Source: https://github.com/cloudevents/spec, cloudevents/spec.md and formats/json-format.md. Types and extensions are
those of KServe's logger (https://github.com/kserve/kserve, pkg/logger/worker.go); as there, the events of a request
and of its response have one id, by which they are joined.
"""

from __future__ import annotations

import asyncio
import base64
import random
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec
import structlog
from prometheus_client import Counter

from appliance.config.telemetry import PayloadLogConfig
from appliance.core.request_context import RequestContext

if TYPE_CHECKING:
    from aiohttp import ClientSession

log: structlog.stdlib.BoundLogger = structlog.get_logger()

COUNT = Counter(
    "appliance_payloads",
    "Events of the payload log: sent, dropped because too many waited, or failed because the sink did not take them.",
    ("result",),
)

# Enough at once for a distant sink, and few enough for its connections.
_BATCH_SIZE = 16

# Minimal time between two warnings.
_WARNING_SECONDS = 30.0

# How long sending the remaining events may take when the server stops.
_FLUSH_SECONDS = 3.0

# How long one event may take to be posted.
_POST_SECONDS = 10.0

Side = Literal["request", "response"]

MEDIA_TYPE = "application/cloudevents+json"


class CapturedBody:
    """The first bytes of a body, up to `max_bytes`."""

    __slots__ = ("_chunks", "_left", "is_truncated", "media_type")

    def __init__(self, max_bytes: int) -> None:
        self._chunks: list[bytes] = []
        self._left = max_bytes
        self.is_truncated = False
        self.media_type = "application/json"

    def add(self, chunk: bytes) -> None:
        """Append the next chunk."""
        if len(chunk) > self._left:
            chunk, self.is_truncated = chunk[: self._left], True
        if chunk:
            self._left -= len(chunk)
            self._chunks.append(chunk)

    def content(self) -> bytes:
        """Return the captured bytes."""
        return b"".join(self._chunks)


class BodyCapture:
    """The captured bodies of a request and its response."""

    __slots__ = ("request", "response")

    def __init__(self, max_bytes: int) -> None:
        self.request, self.response = CapturedBody(max_bytes), CapturedBody(max_bytes)


class PayloadLog:
    """Sends the bodies of requests to a sink; `config` may be replaced at any time, None is off.

    `attributes` and `source` are those of every event.
    """

    def __init__(self, config: PayloadLogConfig | None, source: str, attributes: Mapping[str, str]) -> None:
        self.config = config
        self._source = source
        self._attributes = attributes
        self._waiting: deque[PayloadEvent] = deque()
        self._bytes = 0
        self._has_more = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._warned = -_WARNING_SECONDS

    def capture(self) -> BodyCapture | None:
        """Return where to copy the bodies of a new request; None if it is not logged."""
        config = self.config
        if config is None or random.random() >= config.sample:  # noqa: S311 - not a secret
            return None
        return BodyCapture(config.max_bytes)

    def add(self, context: RequestContext, capture: BodyCapture) -> None:
        """Log a request that has ended, if it was for a model."""
        config = self.config
        if config is None or context.operation is None:
            return
        if config.mode != "response":
            self._put(config, context, "request", capture.request, context.began)
        if config.mode != "request":
            self._put(config, context, "response", capture.response, context.ended or context.began)

    async def stop(self) -> None:
        """Send the events that wait, as far as there is time; the rest is dropped."""
        if self._writer is not None:
            deadline = time.monotonic() + _FLUSH_SECONDS
            # Polled, because it happens once in the life of a process.
            while self._bytes and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
            self._writer = None
        COUNT.labels("dropped").inc(len(self._waiting))
        self._waiting.clear()

    def _put(
        self, config: PayloadLogConfig, context: RequestContext, side: Side, body: CapturedBody, at: float
    ) -> None:
        content = body.content()
        if self._bytes + len(content) > config.max_queued_bytes:
            COUNT.labels("dropped").inc()
            self._warn("too many wait")
            return
        attributes = {
            "model": context.model,
            "operation": context.operation,
            "status": context.status,
            **self._attributes,
        }
        known = {name: value for name, value in attributes.items() if value is not None}
        self._waiting.append(PayloadEvent(side, context.id, at, body.media_type, content, body.is_truncated, known))
        self._bytes += len(content) + 1
        self._has_more.set()
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        config, sink = self.config, None
        try:
            while True:
                await self._has_more.wait()
                self._has_more.clear()
                if self.config is not None and (sink is None or self.config is not config):
                    if sink is not None:
                        await sink.close()
                    config, sink = self.config, open_sink(self.config)
                while self._waiting and sink is not None:
                    await self._send(sink)
        finally:
            if sink is not None:
                await sink.close()

    async def _send(self, sink: Sink) -> None:
        batch = [self._waiting.popleft() for _ in range(min(_BATCH_SIZE, len(self._waiting)))]
        try:
            failures = await sink.send([encode_event(each, self._source) for each in batch])
        except asyncio.CancelledError:
            COUNT.labels("dropped").inc(len(batch))
            raise
        self._bytes -= sum(len(each.body) + 1 for each in batch)
        COUNT.labels("sent").inc(len(batch) - len(failures))
        if failures:
            COUNT.labels("failed").inc(len(failures))
            self._warn(failures[0])

    def _warn(self, reason: str) -> None:
        if time.monotonic() - self._warned >= _WARNING_SECONDS:
            self._warned = time.monotonic()
            log.warning("payloads.lost", reason=reason)


@dataclass(frozen=True, slots=True)
class PayloadEvent:
    """One body and its request; `at` is a time of the monotonic clock."""

    side: Side
    id: str
    at: float
    media_type: str
    body: bytes
    is_truncated: bool
    attributes: Mapping[str, Any]  # Any: JSON values
    """Further attributes; their names have lower-case letters and digits only."""


def encode_event(payload: PayloadEvent, source: str) -> bytes:
    """Return the CloudEvent in one line of JSON."""
    at = datetime.fromtimestamp(time.time() - time.monotonic() + payload.at, UTC)
    attributes = {
        "specversion": "1.0",
        "type": f"org.kubeflow.serving.inference.{payload.side}",
        "source": source,
        "id": payload.id,
        "time": at.isoformat().replace("+00:00", "Z"),
        "datacontenttype": payload.media_type,
        **payload.attributes,
        **({"truncated": True} if payload.is_truncated else {}),
    }
    return msgspec.json.encode({**attributes, **_data(payload)})


def _data(payload: PayloadEvent) -> Mapping[str, object]:
    """Return JSON as JSON, text as text, anything else in base64."""
    kind = payload.media_type.partition(";")[0].strip().lower()
    if not payload.is_truncated and (kind == "application/json" or kind.endswith("+json")):
        try:
            # Decoded, because it may have line feeds, and an event is one line.
            return {"data": msgspec.json.decode(payload.body)}
        except (msgspec.DecodeError, ValueError, RecursionError):
            pass
    if kind.startswith("text/") or kind.endswith("json"):
        try:
            # The last character may be incomplete.
            return {"data": payload.body.decode(errors="ignore" if payload.is_truncated else "strict")}
        except UnicodeDecodeError:
            pass
    return {"data_base64": base64.b64encode(payload.body).decode()}


class Sink(Protocol):
    """A receiver of events."""

    async def send(self, events: Sequence[bytes]) -> list[str]:
        """Send the events; return one reason for each that was not delivered."""

    async def close(self) -> None:
        """Close connections; safe to call twice."""


def open_sink(config: PayloadLogConfig) -> Sink:
    """Return the sink of the config."""
    return FileSink(Path(config.sink)) if config.sink.startswith("/") else HttpSink(config)


class FileSink:
    """Appends lines to a file, which is opened each time, because it may be rotated."""

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
        # One write, because other workers append to the same file.
        with self._path.open("ab", buffering=0) as file:
            file.write(lines)


class HttpSink:
    """Posts each event to a URL."""

    def __init__(self, config: PayloadLogConfig) -> None:
        self._url = config.sink
        self._headers = {name: value.get_secret_value() for name, value in config.headers.items()}
        self._session: ClientSession | None = None

    async def send(self, events: Sequence[bytes]) -> list[str]:
        if self._session is None:
            self._session = self._open()
        session = self._session
        results = await asyncio.gather(*(self._post(session, each) for each in events))
        return [reason for reason in results if reason is not None]

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _post(self, session: ClientSession, event: bytes) -> str | None:
        from aiohttp import ClientError

        try:
            # A redirect would send the content elsewhere than configured.
            async with session.post(self._url, data=event, allow_redirects=False) as response:
                return None if response.status < 300 else f"status {response.status}"
        except (ClientError, TimeoutError, OSError) as error:
            return type(error).__name__

    def _open(self) -> ClientSession:
        from aiohttp import ClientSession, ClientTimeout, DummyCookieJar

        return ClientSession(
            headers={**self._headers, "content-type": MEDIA_TYPE},
            timeout=ClientTimeout(total=_POST_SECONDS),
            cookie_jar=DummyCookieJar(),
        )
