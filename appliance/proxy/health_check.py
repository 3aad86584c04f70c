"""Asking an upstream on an interval whether it is there."""

from __future__ import annotations

import asyncio
import random

import structlog

from appliance.config.upstreams import HealthCheckConfig
from appliance.core.errors import GatewayError
from appliance.proxy.client import UpstreamClient
from appliance.proxy.response import UpstreamResponse

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# A body up to here is read, so that the connection can be used again; the status has said enough.
_MOST_DISCARDED_BYTES = 1024 * 1024

# A key may be good for inference and not for this; one who limits us is there.
_ALSO_GOOD = frozenset({403, 429})


class HealthCheck:
    """The health of one upstream: unknown is not healthy."""

    def __init__(self, config: HealthCheckConfig, client: UpstreamClient, name: str) -> None:
        self.is_healthy = False
        self.reason = "not checked yet"
        self._config = config
        self._client = client
        self._name = name
        self._failures = 0

    @property
    def interval(self) -> float:
        """Seconds between two checks."""
        return self._config.interval_seconds

    async def watch(self) -> None:
        """Check for ever; the first check was made by whoever starts this."""
        while True:
            # Not in step with the other upstreams and the other workers.
            await asyncio.sleep(self._config.interval_seconds * random.uniform(0.9, 1.1))  # noqa: S311 - no secret
            await self.check()

    async def check(self) -> None:
        """Ask once, and know better."""
        path = self._config.path
        fault = None if path is None else await self._fault(path)
        self._failures = self._failures + 1 if fault else 0
        before = self.is_healthy, self.reason
        if fault is None:
            self.is_healthy, self.reason = True, "never asked" if path is None else "it answers"
        elif not self.is_healthy or self._failures >= self._config.failures:
            self.is_healthy, self.reason = False, fault
        if before != (self.is_healthy, self.reason):
            log.info("upstream.checked", upstream=self._name, healthy=self.is_healthy, reason=self.reason)

    async def _fault(self, path: str) -> str | None:
        config = self._config
        try:
            async with asyncio.timeout(config.timeout_seconds):
                answer = await self._client.send(path, None)
                await _discard(answer)
        except TimeoutError:
            return f"GET {path} was not answered within {config.timeout_seconds:g} seconds"
        except GatewayError as error:
            return error.detail
        if answer.status < 300 or answer.status in _ALSO_GOOD:
            return None
        remedy = "check api_key" if answer.status == 401 else "set health.path to one that is good when the upstream is"
        return f"GET {path} answered {answer.status}; {remedy}"


async def _discard(answer: UpstreamResponse) -> None:
    size = 0
    try:
        while size < _MOST_DISCARDED_BYTES and (chunk := await answer.more()):
            size += len(chunk)
    finally:
        answer.close()
