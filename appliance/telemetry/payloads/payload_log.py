"""Payloads on their way to their sink, beside the requests they are of."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Mapping

import structlog
from prometheus_client import Counter

from appliance.config.telemetry import PayloadLogConfig
from appliance.core.request_context import RequestContext
from appliance.telemetry.payloads.captured_body import BodyCapture, CapturedBody
from appliance.telemetry.payloads.event import PayloadEvent, Side, event
from appliance.telemetry.payloads.sinks import Sink, sink_of

log: structlog.stdlib.BoundLogger = structlog.get_logger()

COUNT = Counter(
    "appliance_payloads",
    "Events of the payload log: sent, dropped because too many waited, or failed because the sink did not take them.",
    ("result",),
)

# Enough at once that a sink far away is no bottleneck, and few enough for its connections.
_BATCH = 16

# Often enough to see that a sink is down, seldom enough to read the rest of the log.
_TELL_SECONDS = 30.0

# How long what waits may take to leave once the server stops.
_FLUSH_SECONDS = 3.0


class PayloadLog:
    """Copies what a section asks for, and brings it to its sink; None copies nothing.

    `facts` are attributes of every event, `source` says whose they are.
    """

    def __init__(self, config: PayloadLogConfig | None, source: str, facts: Mapping[str, str]) -> None:
        self._config = config
        self._source = source
        self._facts = facts
        self._waiting: deque[PayloadEvent] = deque()
        self._bytes = 0
        self._has_more = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._told = -_TELL_SECONDS

    def apply(self, config: PayloadLogConfig | None) -> None:
        """Go by this section from now on; what waits goes to its sink."""
        self._config = config

    def copy(self) -> BodyCapture | None:
        """Where to copy a request that begins now; None where it is not to be logged."""
        config = self._config
        if config is None or random.random() >= config.sample:  # noqa: S311 - not a secret
            return None
        return BodyCapture(config.max_bytes)

    def take(self, record: RequestContext, copy: BodyCapture) -> None:
        """Log a request that has ended, if a model was asked."""
        config = self._config
        if config is None or record.operation is None:
            return
        if config.mode != "response":
            self._put(config, record, "request", copy.request, record.began)
        if config.mode != "request":
            self._put(config, record, "response", copy.response, record.ended or record.began)

    async def stop(self) -> None:
        """Send what waits, as far as there is time; the rest is dropped."""
        if self._writer is not None:
            deadline = time.monotonic() + _FLUSH_SECONDS
            # Polled: the writer says nothing of its last event, and this is seldom in a process's life.
            while self._bytes and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
            self._writer = None
        COUNT.labels("dropped").inc(len(self._waiting))
        self._waiting.clear()

    def _put(self, config: PayloadLogConfig, record: RequestContext, side: Side, body: CapturedBody, at: float) -> None:
        whole = body.whole()
        if self._bytes + len(whole) > config.max_queued_bytes:
            COUNT.labels("dropped").inc()
            self._tell("too many wait")
            return
        facts = {"model": record.model, "operation": record.operation, "status": record.status, **self._facts}
        known = {name: value for name, value in facts.items() if value is not None}
        self._waiting.append(PayloadEvent(side, record.id, at, body.media_type, whole, body.is_cut, known))
        self._bytes += len(whole) + 1
        self._has_more.set()
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        config, sink = self._config, None
        try:
            while True:
                await self._has_more.wait()
                self._has_more.clear()
                if self._config is not None and (sink is None or self._config is not config):
                    if sink is not None:
                        await sink.close()
                    config, sink = self._config, sink_of(self._config)
                while self._waiting and sink is not None:
                    await self._send(sink)
        finally:
            if sink is not None:
                await sink.close()

    async def _send(self, sink: Sink) -> None:
        batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
        try:
            failures = await sink.send([event(each, self._source) for each in batch])
        except asyncio.CancelledError:
            COUNT.labels("dropped").inc(len(batch))
            raise
        self._bytes -= sum(len(each.body) + 1 for each in batch)
        COUNT.labels("sent").inc(len(batch) - len(failures))
        if failures:
            COUNT.labels("failed").inc(len(failures))
            self._tell(failures[0])

    def _tell(self, why: str) -> None:
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self._told = time.monotonic()
            log.warning("payloads.lost", reason=why)
