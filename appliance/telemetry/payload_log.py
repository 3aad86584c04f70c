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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import msgspec
import structlog
from prometheus_client import Counter

from appliance.config.root import MetadataConfig
from appliance.config.telemetry import PayloadLogConfig
from appliance.core.request_context import RequestContext

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

_MEDIA_TYPE = "application/cloudevents+json"

_Side = Literal["request", "response"]


class CapturedBody:
    """The first bytes of a body, up to `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.media_type = "application/json"
        self.size = 0
        self.is_truncated = False
        self._max_bytes = max_bytes
        self._chunks: list[bytes] = []

    def add(self, chunk: bytes) -> None:
        """Append the next chunk."""
        left = self._max_bytes - self.size
        if len(chunk) > left:
            chunk, self.is_truncated = chunk[:left], True
        if chunk:
            self.size += len(chunk)
            self._chunks.append(chunk)

    @property
    def content(self) -> bytes:
        """The captured bytes."""
        return b"".join(self._chunks)


class BodyCapture:
    """The captured bodies of a request and its response."""

    def __init__(self, max_bytes: int) -> None:
        self.request, self.response = CapturedBody(max_bytes), CapturedBody(max_bytes)


_Event: TypeAlias = tuple[_Side, RequestContext, CapturedBody]


class PayloadLog:
    """Sends the bodies of requests to a sink; `config` may be replaced at any time, None is off."""

    def __init__(self, metadata: MetadataConfig) -> None:
        self.config: PayloadLogConfig | None = None
        self._source, self._attributes = "appliance", dict[str, str]()
        if metadata.name is not None:
            self._source = f"/{metadata.namespace}/{metadata.name}"
            # The attributes of KServe's logger.
            service = {"inferenceservicename": metadata.name, "namespace": metadata.namespace}
            self._attributes = {**service, "component": "predictor"}
        self._queue: asyncio.Queue[_Event] = asyncio.Queue()
        self._bytes = 0
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
            self._put("request", context, capture.request, config.max_queued_bytes)
        if config.mode != "request":
            self._put("response", context, capture.response, config.max_queued_bytes)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write(config))

    async def stop(self) -> None:
        """Send the events that wait, as far as there is time; the rest is dropped."""
        if self._writer is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._queue.join(), _FLUSH_SECONDS)
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
            self._writer = None
        COUNT.labels("dropped").inc(self._queue.qsize())
        self._queue, self._bytes = asyncio.Queue(), 0

    def _put(self, side: _Side, context: RequestContext, body: CapturedBody, max_bytes: int) -> None:
        if self._bytes + body.size > max_bytes:
            COUNT.labels("dropped").inc()
            self._warn("too many wait")
            return
        # One more, because an event without a body takes memory too.
        self._bytes += body.size + 1
        self._queue.put_nowait((side, context, body))

    async def _write(self, config: PayloadLogConfig) -> None:
        sink = _open_sink(config)
        try:
            while True:
                batch = [await self._queue.get()]
                while len(batch) < _BATCH_SIZE and not self._queue.empty():
                    batch.append(self._queue.get_nowait())
                # What still waits when it is turned off goes to the last sink.
                if self.config is not None and self.config is not config:
                    await sink.close()
                    config, sink = self.config, _open_sink(self.config)
                await self._send(sink, batch)
        finally:
            await sink.close()

    async def _send(self, sink: _Sink, batch: Sequence[_Event]) -> None:
        try:
            failures = await sink.send([self._encode(*each) for each in batch])
        except asyncio.CancelledError:
            COUNT.labels("dropped").inc(len(batch))
            raise
        for _, _, body in batch:
            self._bytes -= body.size + 1
            self._queue.task_done()
        COUNT.labels("sent").inc(len(batch) - len(failures))
        if failures:
            COUNT.labels("failed").inc(len(failures))
            self._warn(failures[0])

    def _encode(self, side: _Side, context: RequestContext, body: CapturedBody) -> bytes:
        """Return the CloudEvent in one line of JSON."""
        moment = context.began if side == "request" else context.ended or context.began
        at = datetime.fromtimestamp(time.time() - time.monotonic() + moment, UTC)
        attributes = {
            "specversion": "1.0",
            "type": f"org.kubeflow.serving.inference.{side}",
            "source": self._source,
            "id": context.id,
            "time": at.isoformat().replace("+00:00", "Z"),
            "datacontenttype": body.media_type,
            # Names of further attributes have lower-case letters and digits only.
            "model": context.model,
            "operation": context.operation,
            "status": context.status,
            **self._attributes,
            "truncated": body.is_truncated or None,
        }
        known = {name: value for name, value in attributes.items() if value is not None}
        return msgspec.json.encode({**known, **_data(body)})

    def _warn(self, reason: str) -> None:
        if time.monotonic() - self._warned >= _WARNING_SECONDS:
            self._warned = time.monotonic()
            log.warning("payloads.lost", reason=reason)


def _data(body: CapturedBody) -> Mapping[str, object]:
    """Return JSON as JSON, text as text, anything else in base64."""
    content, kind = body.content, body.media_type.partition(";")[0].strip().lower()
    if not body.is_truncated and (kind == "application/json" or kind.endswith("+json")):
        # Decoded, because it may have line feeds, and an event is one line.
        with suppress(msgspec.DecodeError, ValueError, RecursionError):
            return {"data": msgspec.json.decode(content)}
    if kind.startswith("text/") or kind.endswith("json"):
        # The last character may be incomplete.
        with suppress(UnicodeDecodeError):
            return {"data": content.decode(errors="ignore" if body.is_truncated else "strict")}
    return {"data_base64": base64.b64encode(content).decode()}


class _Sink(Protocol):
    async def send(self, events: Sequence[bytes]) -> list[str]:
        """Send the events; return one reason for each that was not delivered."""

    async def close(self) -> None:
        """Close connections."""


def _open_sink(config: PayloadLogConfig) -> _Sink:
    return _FileSink(Path(config.sink)) if config.sink.startswith("/") else _HttpSink(config)


class _FileSink:
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


class _HttpSink:
    """Posts each event to a URL."""

    def __init__(self, config: PayloadLogConfig) -> None:
        from aiohttp import ClientSession, ClientTimeout, DummyCookieJar

        self._url = config.sink
        headers = {name: value.get_secret_value() for name, value in config.headers.items()}
        self._session = ClientSession(
            headers={**headers, "content-type": _MEDIA_TYPE},
            timeout=ClientTimeout(total=_POST_SECONDS),
            cookie_jar=DummyCookieJar(),
        )

    async def send(self, events: Sequence[bytes]) -> list[str]:
        results = await asyncio.gather(*map(self._post, events))
        return [reason for reason in results if reason is not None]

    async def close(self) -> None:
        await self._session.close()

    async def _post(self, event: bytes) -> str | None:
        from aiohttp import ClientError

        try:
            # A redirect would send the content elsewhere than configured.
            async with self._session.post(self._url, data=event, allow_redirects=False) as response:
                return None if response.status < 300 else f"status {response.status}"
        except (ClientError, TimeoutError, OSError) as error:
            return type(error).__name__
