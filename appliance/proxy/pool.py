"""Several upstreams as one: who is asked, who is asked next, and when there is nobody to ask."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from appliance.config.upstreams import Balance, CircuitBreakerConfig, HealthCheckConfig, PoolMemberConfig, RetryConfig
from appliance.core.errors import GatewayError, UnavailableError
from appliance.core.http import address_of
from appliance.proxy import metrics
from appliance.proxy.circuit_breaker import Circuit
from appliance.proxy.exchange import UpstreamExchange, UpstreamRequest
from appliance.proxy.load_balancing import balancer
from appliance.proxy.outlier_detection import outlier
from appliance.proxy.retry import RetryBudget, may_retry
from appliance.proxy.upstream import Upstream

# The same upstream would only say it again.
_TOO_MANY = 429


class UpstreamPool:
    """The upstreams of one model."""

    def __init__(
        self,
        configs: Sequence[PoolMemberConfig],
        model: str,
        *,
        balance: Balance,
        retry: RetryConfig,
        breaker: CircuitBreakerConfig,
        health: HealthCheckConfig,
    ) -> None:
        self.members = tuple(
            Upstream(config, name, model, health=health, breaker=breaker)
            for config, name in zip(configs, names(configs), strict=True)
        )
        self._balancer = balancer(balance, self.members)
        self._retry = retry
        self._margin = breaker.outlier_margin
        self._budget = RetryBudget(retry.budget_share)
        self._retries = metrics.RETRIES.labels(model)
        self._watches: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Check every upstream once, and from then on."""
        await asyncio.gather(*(member.health.check() for member in self.members))
        self._watches = [asyncio.create_task(member.health.watch()) for member in self.members]

    async def close(self) -> None:
        """End the checks and every connection; safe to call twice."""
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await asyncio.gather(*(member.close() for member in self.members))

    def require(self) -> None:
        """Return when somebody can be asked.

        Raises:
            UnavailableError: nobody can.
        """
        if not any(member.is_available for member in self.members):
            wait = min(member.wait for member in self.members)
            raise UnavailableError(
                "its upstream cannot answer now"
                if len(self.members) == 1
                else f"none of its {len(self.members)} upstreams can answer now",
                retry_after=max(1, ceil(wait)),
                code="no_upstream",
            )

    def describe(self) -> Sequence[Mapping[str, Any]]:  # Any: JSON values
        """How each upstream is."""
        return [member.describe() for member in self.members]

    async def ask(self, request: UpstreamRequest) -> UpstreamExchange:
        """The first answer that is no reason to try again, or the last one there was.

        Raises:
            UnavailableError: nobody can be asked.
            GatewayError: there is no answer.
        """
        self._budget.pay_in()
        tried: list[Upstream] = []
        while True:
            member = self._pick(request, tried)
            tried.append(member)
            try:
                exchange = await member.ask(request)
            except GatewayError as error:
                self._review()
                if not may_retry(self._retry, error, is_generation=request.is_generation) or not self._may_retry(tried):
                    raise
            else:
                status = exchange.answer.status
                if status >= 500:
                    self._review()
                is_allowed = may_retry(self._retry, status, is_generation=request.is_generation)
                if not is_allowed or not self._may_retry(tried, status):
                    return exchange
                exchange.discard()
            await asyncio.sleep(self._backoff(tried))

    def _pick(self, request: UpstreamRequest, tried: Sequence[Upstream]) -> Upstream:
        self.require()
        available = [member for member in self.members if member.is_available]
        untried = [member for member in available if member not in tried]
        return self._balancer.pick(untried or available, request.key)

    def _may_retry(self, tried: Sequence[Upstream], status: int | None = None) -> bool:
        available = [member for member in self.members if member.is_available]
        elsewhere = [member for member in available if member not in tried]
        is_of_use = elsewhere if status == _TOO_MANY else available
        if len(tried) > self._retry.attempts or not is_of_use or not self._budget.take():
            return False
        self._retries.inc()
        return True

    def _backoff(self, tried: Sequence[Upstream]) -> float:
        if any(member.is_available and member not in tried for member in self.members):
            return 0
        return float(self._retry.backoff_seconds * 2 ** max(0, len(tried) - len(self.members)))

    def _review(self) -> None:
        """Leave alone who fails much more often than the others, but never more than half of all."""
        closed = [member for member in self.members if member.circuit is Circuit.CLOSED]
        if len(closed) - 1 < len(self.members) / 2:
            return
        worst = outlier([member.tally for member in closed], self._margin)
        for member in closed:
            if member.tally is worst:
                member.eject()


def names(configs: Sequence[PoolMemberConfig]) -> list[str]:
    """What each upstream is called, no two of them alike."""
    seen: Counter[str] = Counter()
    made = []
    for config in configs:
        name = config.name or address_of(config.url)
        seen[name] += 1
        made.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return made
