"""One upstream of a pool: its client, active health checks, circuit breaker and metrics."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

import msgspec
import structlog

from appliance.config.models import ProxyConfig
from appliance.config.upstreams import PoolMemberConfig
from appliance.core.concurrency import off_loop
from appliance.core.errors import GatewayError, GatewayTimeoutError, RequestError
from appliance.core.json_edit import JsonObject, NotAnObjectError
from appliance.core.model import MULTIPART_OPERATIONS, OPENAI_PATHS, Operation
from appliance.core.rewrite import RequestBody, RequestRewriter
from appliance.over_chat import TRANSLATED, Translator, translate
from appliance.proxy import metrics
from appliance.proxy.circuit_breaker import Circuit, CircuitBreaker, FailureRate
from appliance.proxy.client import UpstreamClient
from appliance.proxy.response import UpstreamResponse

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# A body up to this size is read, so that its connection can be used again.
_MAX_BODY_BYTES = 1024 * 1024

# The API key may be allowed inference and not this path; an upstream that limits us is there.
_HEALTHY_STATUSES = frozenset({403, 429})


class UpstreamRequest(msgspec.Struct, frozen=True):
    """A request that any upstream of a pool can get."""

    operation: Operation
    path: str
    query: str
    headers: Mapping[str, str]
    body: RequestBody
    model: str
    """The client's name of the model, for responses that are translated."""
    prompt_prefix: bytes
    """Empty unless the load balancer needs it."""
    patience: float | None
    """Seconds of silence after which an event stream is relayed without its first byte; None waits for it."""


class _OutgoingRequest(msgspec.Struct, frozen=True):
    """A request as one upstream gets it."""

    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    translator: Translator | None = None


class Upstream:
    """An upstream of a pool."""

    def __init__(self, proxy: ProxyConfig, config: PoolMemberConfig, name: str) -> None:
        clock = asyncio.get_running_loop().time
        # Health checks have the headers of every request.
        headers = {**proxy.headers.set, **config.headers}
        self.name = name
        self.weight: float = config.weight
        self.priority = config.priority
        self.inflight = 0
        self.client = UpstreamClient(config.model_copy(update={"headers": headers}))
        self.is_healthy = False
        """The last health checks succeeded; before the first one it is not healthy."""
        self._health = proxy.health
        self._health_reason = "not checked yet"
        self._failed_checks = 0
        self.breaker = CircuitBreaker(proxy.breaker, clock)
        self.failure_rate = FailureRate(clock)
        self._clock = clock
        self._model = config.model or proxy.name
        self._rewriter = RequestRewriter(config.request)
        self._dropped = frozenset(config.request.drop)
        self._translated = frozenset[Operation]().union(*(TRANSLATED[protocol] for protocol in config.translate))
        self._labels = (proxy.name, name)
        self._first_byte = metrics.FIRST_BYTE.labels(*self._labels)
        metrics.track_upstream(self._labels, self)

    @property
    def is_available(self) -> bool:
        """A request can be sent now."""
        return self.is_healthy and self.breaker.allows_request

    @property
    def unavailable_seconds(self) -> float:
        """Seconds after which it may be available."""
        return self.breaker.open_seconds if self.is_healthy else self._health.interval_seconds

    def describe(self) -> Mapping[str, Any]:  # Any: JSON values
        """Return the status for probes."""
        return {
            "name": self.name,
            "priority": self.priority,
            "available": self.is_available,
            "reason": self._health_reason,
            "circuit": self.breaker.circuit,
            "running": self.inflight,
        }

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send a request, and wait for the first bytes of its response.

        Raises:
            RequestError: the request cannot be changed or translated as the config says.
            GatewayError: there is no response.
        """
        outgoing = await off_loop(len(request.body.before) + len(request.body.after), self._outgoing, request)
        self.inflight += 1
        self.breaker.start_request()
        sent_at = self._clock()
        response: UpstreamResponse | None = None
        try:
            response = await self.client.send(outgoing.path, outgoing.body, outgoing.headers, query=outgoing.query)
            response.translator = outgoing.translator
            has_begun = await response.start(request.patience if response.is_event_stream else None)
        except BaseException as error:
            if response is not None:
                response.close()
            self._end("no_answer", error)
            raise
        if has_begun:
            self._first_byte.observe(self._clock() - sent_at)
        if response.status >= 500:
            self.record_failure()
        else:
            self._record_success()
        response.on_close = self._close_response
        return response

    def _outgoing(self, request: UpstreamRequest) -> _OutgoingRequest:
        body = request.body.with_model(self._model)
        outgoing = _OutgoingRequest(request.path, request.query, request.headers, body)
        operation = request.operation
        if operation in self._translated:
            operation = Operation.CHAT_COMPLETION
            outgoing = self._translate(request, outgoing)
        if operation in MULTIPART_OPERATIONS or not self._rewriter.changes(operation):
            return outgoing
        try:
            document = JsonObject(outgoing.body)
            self._rewriter.rewrite(operation, document)
        except NotAnObjectError as error:
            raise RequestError(f"The body is not a request: {error}", code="invalid_json") from error
        return msgspec.structs.replace(outgoing, body=document.write())

    def _translate(self, request: UpstreamRequest, outgoing: _OutgoingRequest) -> _OutgoingRequest:
        translator = translate(request.operation, outgoing.body, request.model, self._dropped)
        headers = {name: value for name, value in request.headers.items() if not name.startswith("anthropic-")}
        body = msgspec.json.encode({"model": self._model, **translator.request})
        return _OutgoingRequest(OPENAI_PATHS[Operation.CHAT_COMPLETION][0], "", headers, body, translator)

    async def run_health_checks(self) -> None:
        """Check forever, the first time after an interval."""
        while True:
            # Checks by other workers and of other upstreams are sent at other times.
            await asyncio.sleep(self._health.interval_seconds * random.uniform(0.9, 1.1))  # noqa: S311 - not a secret
            await self.check_health()

    async def check_health(self) -> None:
        """Check once."""
        path = self._health.path
        problem = None if path is None else await self._health_problem(path)
        self._failed_checks = self._failed_checks + 1 if problem else 0
        before = self.is_healthy, self._health_reason
        if problem is None:
            reason = "never checked" if path is None else "the health check succeeded"
            self.is_healthy, self._health_reason = True, reason
        elif not self.is_healthy or self._failed_checks >= self._health.failures:
            self.is_healthy, self._health_reason = False, problem
        if before != (self.is_healthy, self._health_reason):
            log.info("upstream.health_changed", upstream=self.name, healthy=self.is_healthy, reason=self._health_reason)

    async def _health_problem(self, path: str) -> str | None:
        size, seconds = 0, self._health.timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                response = await self.client.send(path, None)
                async with aclosing(response.read_pieces()) as pieces:
                    async for piece in pieces:
                        size += len(piece)
                        if size >= _MAX_BODY_BYTES:
                            break
        except TimeoutError:
            return f"GET {path} was not answered within {seconds:g} seconds"
        except GatewayError as error:
            return error.detail
        if response.status < 300 or response.status in _HEALTHY_STATUSES:
            return None
        remedy = "set health.path to a path that answers 200 when the upstream is healthy"
        return f"GET {path} answered {response.status}; {'check api_key' if response.status == 401 else remedy}"

    def record_failure(self) -> None:
        """Count a failed request."""
        before = self.breaker.circuit
        self.breaker.record_failure()
        self.failure_rate.add(is_success=False)
        if self.breaker.circuit is Circuit.OPEN and before is not Circuit.OPEN:
            self._log_opened("consecutive failures")

    def eject(self) -> None:
        """Open the circuit breaker because the upstream fails much more often than the others."""
        self.breaker.open()
        self.failure_rate.clear()
        self._log_opened("outlier")

    async def close(self) -> None:
        """Close every connection."""
        metrics.untrack_upstream(self._labels, self)
        await self.client.close()

    def _record_success(self) -> None:
        if self.breaker.circuit is not Circuit.CLOSED:
            log.info("circuit_breaker.closed", upstream=self.name)
        self.breaker.record_success()
        self.failure_rate.add(is_success=True)

    def _close_response(self, response: UpstreamResponse) -> None:
        if response.error is None and response.is_complete:
            self._end(f"{response.status // 100}xx")
        else:
            self._end("cut_off", response.error or GeneratorExit())

    def _end(self, end: str, error: BaseException | None = None) -> None:
        """Count the end of a request; an error that is not the upstream's is a client that left."""
        self.inflight -= 1
        if isinstance(error, GatewayError):
            end = "timeout" if isinstance(error, GatewayTimeoutError) else end
            self.record_failure()
            cause = type(error.__cause__ or error).__name__
            log.warning("upstream.failed", upstream=self.name, end=end, reason=error.detail, cause=cause)
        elif error is not None:
            end = "left"
            self.breaker.abandon_trial()
        metrics.requests(*self._labels, end).inc()

    def _log_opened(self, reason: str) -> None:
        log.warning("circuit_breaker.opened", upstream=self.name, reason=reason, seconds=self.breaker.open_seconds)
