"""One upstream among several, and how it fares."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

import structlog

from appliance.config.upstreams import CircuitBreakerConfig, HealthCheckConfig, PoolMemberConfig
from appliance.core.errors import GatewayError, GatewayTimeoutError
from appliance.proxy import metrics
from appliance.proxy.circuit_breaker import Circuit, CircuitBreaker
from appliance.proxy.client import UpstreamClient
from appliance.proxy.exchange import End, UpstreamExchange, UpstreamRequest
from appliance.proxy.health_check import HealthCheck
from appliance.proxy.outlier_detection import FailureWindow
from appliance.proxy.response import UpstreamResponse

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Upstream:
    """An upstream with its connections, its health and its breaker."""

    def __init__(
        self,
        config: PoolMemberConfig,
        name: str,
        model: str,
        *,
        health: HealthCheckConfig,
        breaker: CircuitBreakerConfig,
    ) -> None:
        clock = asyncio.get_running_loop().time
        self.name = name
        self.weight = config.weight
        self.inflight = 0
        self.client = UpstreamClient(config)
        self.health = HealthCheck(health, self.client, name)
        self.breaker = CircuitBreaker(breaker, clock)
        self.tally = FailureWindow(clock)
        self._clock = clock
        self._as = config.model or model
        self._labels = (model, name)
        self._first_byte = metrics.FIRST_BYTE.labels(*self._labels)
        metrics.show(self._labels, self)

    @property
    def is_available(self) -> bool:
        """Whether it can be asked now."""
        return self.health.is_healthy and self.breaker.lets_through

    @property
    def is_healthy(self) -> bool:
        """Its last checks were good."""
        return self.health.is_healthy

    @property
    def wait(self) -> float:
        """Seconds after which that may be different."""
        return self.breaker.wait if self.health.is_healthy else self.health.interval

    @property
    def circuit(self) -> Circuit:
        """Where its breaker stands."""
        return self.breaker.circuit

    def describe(self) -> Mapping[str, Any]:  # Any: JSON values
        """How it is, for probes."""
        return {
            "name": self.name,
            "available": self.is_available,
            "reason": self.health.reason,
            "circuit": self.circuit,
            "running": self.inflight,
        }

    async def ask(self, request: UpstreamRequest) -> UpstreamExchange:
        """Send a request, and wait for the first byte of its answer.

        Raises:
            GatewayError: there is none.
        """
        self.inflight += 1
        self.breaker.begin()
        asked = self._clock()
        answer: UpstreamResponse | None = None
        try:
            answer = await self.client.send(
                request.path, request.body.under(self._as), request.headers, query=request.query
            )
            first = await answer.first(request.patience if answer.is_event_stream else None)
        except BaseException as error:
            if answer is not None:
                answer.close()
            self.end(error)
            raise
        if first is not None:
            self._first_byte.observe(self._clock() - asked)
        if answer.status >= 500:
            self.fail()
        else:
            self._succeed()
        return UpstreamExchange(answer, first, partial(self.end, has_begun=True))

    def end(self, how: End, *, has_begun: bool = False) -> None:
        """A request ended: with a class of status, with an error, or because its client left."""
        self.inflight -= 1
        match how:
            case str():
                end = how
            case GatewayTimeoutError():
                end = "timeout"
            case GatewayError():
                end = "cut_off" if has_begun else "no_answer"
            case _:
                end = "left"
                self.breaker.forget()
        if isinstance(how, GatewayError):
            self.fail()
            log.warning("upstream.failed", upstream=self.name, end=end, reason=how.detail, cause=_cause(how))
        metrics.REQUESTS.labels(*self._labels, end).inc()

    def fail(self) -> None:
        """Remember that it did not do what it was asked."""
        was = self.circuit
        self.breaker.fail()
        self.tally.add(is_good=False)
        if self.circuit is Circuit.OPEN and was is not Circuit.OPEN:
            log.warning("upstream.left_alone", upstream=self.name, why="failures in a row", seconds=self.breaker.wait)

    def eject(self) -> None:
        """Leave it alone because it fails much more often than the others."""
        self.breaker.open()
        self.tally.clear()
        log.warning("upstream.left_alone", upstream=self.name, why="an outlier", seconds=self.breaker.wait)

    def _succeed(self) -> None:
        if self.circuit is not Circuit.CLOSED:
            log.info("upstream.came_back", upstream=self.name)
        self.breaker.succeed()
        self.tally.add(is_good=True)

    async def close(self) -> None:
        """Close every connection."""
        metrics.hide(self._labels, self)
        await self.client.close()


def _cause(error: BaseException) -> str:
    return type(error.__cause__ or error).__name__
