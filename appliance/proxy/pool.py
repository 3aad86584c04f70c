"""The upstreams of one model: load balancing, retries, and errors when none is available.

Retries are a share of the traffic, so that they do not keep an upstream down.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from appliance.config.models import ProxyConfig
from appliance.config.upstreams import PoolMemberConfig, RetryConfig
from appliance.core.concurrency import backoff_seconds
from appliance.core.errors import GatewayError, GatewayTimeoutError, UnavailableError, UnreachableError
from appliance.core.http import address_of
from appliance.core.model import TEXT_GENERATIONS, Operation
from appliance.proxy import metrics
from appliance.proxy.circuit_breaker import Circuit, find_outlier
from appliance.proxy.load_balancing import LoadBalancer
from appliance.proxy.response import UpstreamResponse
from appliance.proxy.upstream import Upstream, UpstreamRequest

# The same upstream would answer it again.
_TOO_MANY_REQUESTS = 429

_MAX_BACKOFF_SECONDS = 60.0

# A model with little traffic can retry too; a model with much cannot save up retries for an outage.
_INITIAL, _MAX = 3.0, 100.0

# With these the upstream has not started to work on the request; 529 is Anthropic's
# (https://docs.anthropic.com/en/api/errors).
_REJECTIONS = frozenset({429, 503, 529})

# Slow and expensive, and the result may differ the second time.
_EXPENSIVE_OPERATIONS = TEXT_GENERATIONS | {
    Operation.SPEECH,
    Operation.IMAGE,
    Operation.IMAGE_EDIT,
    Operation.IMAGE_VARIATION,
    Operation.TRANSCRIPTION,
    Operation.TRANSLATION,
}


def is_retryable(config: RetryConfig, outcome: int | GatewayError, operation: Operation) -> bool:
    """Return whether a request may be sent again after this status, or after this failure to get a response."""
    must_not_repeat = operation in _EXPENSIVE_OPERATIONS and not config.generations
    if isinstance(outcome, int):
        return outcome in config.statuses and (not must_not_repeat or outcome in _REJECTIONS)
    if must_not_repeat:
        return isinstance(outcome, UnreachableError)
    # A client that waited until a timeout does not want to wait as long again.
    return not isinstance(outcome, GatewayTimeoutError)


class RetryBudget:
    """Each request adds a share of a retry, each retry takes one."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._saved = _INITIAL

    def add_request(self) -> None:
        """Count a request."""
        self._saved = min(self._saved + self._share, _MAX)

    def take_retry(self) -> bool:
        """Return whether a retry is allowed; if so it is counted."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True


class UpstreamPool:
    """The upstreams of one model."""

    def __init__(self, config: ProxyConfig) -> None:
        names = unique_names(config.upstreams)
        self.members = [Upstream(config, *each) for each in zip(config.upstreams, names, strict=True)]
        self._load_balancer = LoadBalancer(config.balance, self.members)
        self._retry = config.retry
        self._outlier_margin = config.breaker.outlier_margin
        self._budget = RetryBudget(config.retry.budget_share)
        self._retries = metrics.RETRIES.labels(config.name)
        self._health_checks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Check every upstream once, and start the regular checks."""
        await asyncio.gather(*(member.check_health() for member in self.members))
        self._health_checks = [asyncio.create_task(member.run_health_checks()) for member in self.members]

    async def close(self) -> None:
        """Stop the checks and close every connection; safe to call twice."""
        for task in self._health_checks:
            task.cancel()
        await asyncio.gather(*self._health_checks, return_exceptions=True)
        await asyncio.gather(*(member.close() for member in self.members))

    def require_available(self) -> None:
        """Return if an upstream is available.

        Raises:
            UnavailableError: none is.
        """
        if not _available(self.members):
            seconds = min(member.unavailable_seconds for member in self.members)
            raise UnavailableError(
                "its upstream cannot answer now"
                if len(self.members) == 1
                else f"none of its {len(self.members)} upstreams can answer now",
                retry_after=max(1, ceil(seconds)),
                code="no_upstream",
            )

    def describe(self) -> Sequence[Mapping[str, Any]]:  # Any: JSON values
        """Return the status of each upstream."""
        return [member.describe() for member in self.members]

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """Return the first response that is not retried, or the last one.

        Raises:
            UnavailableError: no upstream is available.
            GatewayError: there is no response.
        """
        self._budget.add_request()
        tried: list[Upstream] = []
        candidates: Sequence[Upstream] = ()
        while True:
            # The state of those that were chosen for a retry may have changed during its delay.
            candidates = _available(candidates) or self._first_candidates()
            member = self._load_balancer.pick(candidates, request.prompt_prefix)
            tried.append(member)
            try:
                response = await member.send(request)
            except GatewayError as error:
                self._eject_outlier()
                candidates = self._retry_candidates(request, error, tried)
                if not candidates:
                    raise
            else:
                if response.status >= 500:
                    self._eject_outlier()
                candidates = self._retry_candidates(request, response.status, tried)
                if not candidates:
                    return response
                response.discard()
            self._retries.inc()
            await asyncio.sleep(self._backoff_seconds(candidates, tried))

    def _first_candidates(self) -> Sequence[Upstream]:
        try:
            self.require_available()
        except UnavailableError as error:
            message = f"The model is unavailable: {error}"
            raise UnavailableError(message, retry_after=error.retry_after, code=error.code) from error
        return _best_group(_available(self.members))

    def _retry_candidates(
        self, request: UpstreamRequest, outcome: int | GatewayError, tried: Sequence[Upstream]
    ) -> Sequence[Upstream]:
        """Return the upstreams of which one may get the request next; empty if it is not retried.

        Those of the same priority come first, but the last attempt is kept for the next priority. That one needs no
        budget: it does not add to the load of the upstreams that fail, and each request reaches it only once.
        """
        left = self._retry.attempts + 1 - len(tried)
        if left < 1 or not is_retryable(self._retry, outcome, request.operation):
            return ()
        available = _available(self.members)
        untried = [member for member in available if member not in tried]
        reserves = [member for member in untried if member.priority > tried[-1].priority]
        others = [member for member in untried if member not in reserves]
        if not untried and outcome != _TOO_MANY_REQUESTS:
            others = available
        if others and not (reserves and left == 1) and self._budget.take_retry():
            return _best_group(others)
        return _best_group(reserves)

    def _backoff_seconds(self, candidates: Sequence[Upstream], tried: Sequence[Upstream]) -> float:
        if any(member not in tried for member in candidates):
            return 0
        failures = 1 + max(0, len(tried) - len(self.members))
        first_seconds = self._retry.backoff_seconds
        return backoff_seconds(failures, first_seconds=first_seconds, max_seconds=_MAX_BACKOFF_SECONDS)

    def _eject_outlier(self) -> None:
        """Eject the upstream that fails much more often than the others, but never more than half of all."""
        closed = [member for member in self.members if member.breaker.circuit is Circuit.CLOSED]
        if len(closed) - 1 < len(self.members) / 2:
            return
        outlier = find_outlier([member.failure_rate for member in closed], self._outlier_margin)
        if outlier is not None:
            closed[outlier].eject()


def _available(members: Sequence[Upstream]) -> list[Upstream]:
    return [member for member in members if member.is_available]


def _best_group(members: Sequence[Upstream]) -> Sequence[Upstream]:
    """Return those whose priority is the first among them."""
    first = min((member.priority for member in members), default=0)
    return [member for member in members if member.priority == first]


def unique_names(configs: Sequence[PoolMemberConfig]) -> list[str]:
    """Return the name of each upstream; a name that occurs again gets a number."""
    seen: Counter[str] = Counter()
    names = []
    for config in configs:
        name = config.name or address_of(config.url)
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return names
