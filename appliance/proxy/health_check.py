"""Active health checks of upstreams."""

from __future__ import annotations

import asyncio
import random

import structlog

from appliance.config.upstreams import HealthCheckConfig
from appliance.core.errors import GatewayError
from appliance.proxy.client import UpstreamClient

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# A body up to this size is read, so that its connection can be used again.
_MAX_BODY_BYTES = 1024 * 1024

# The API key may be allowed inference and not this path; an upstream that limits us is there.
_HEALTHY_STATUSES = frozenset({403, 429})


class HealthCheck:
    """The health of one upstream; before the first check it is not healthy."""

    def __init__(self, config: HealthCheckConfig, client: UpstreamClient, name: str) -> None:
        self.is_healthy = False
        self.reason = "not checked yet"
        self.interval_seconds = config.interval_seconds
        self._config = config
        self._client = client
        self._name = name
        self._failures = 0

    async def run(self) -> None:
        """Check forever, the first time after an interval."""
        while True:
            # Checks by other workers and of other upstreams are sent at other times.
            await asyncio.sleep(self.interval_seconds * random.uniform(0.9, 1.1))  # noqa: S311 - not a secret
            await self.check()

    async def check(self) -> None:
        """Check once."""
        path = self._config.path
        problem = None if path is None else await self._problem(path)
        self._failures = self._failures + 1 if problem else 0
        before = self.is_healthy, self.reason
        if problem is None:
            self.is_healthy, self.reason = True, "never checked" if path is None else "the health check succeeded"
        elif not self.is_healthy or self._failures >= self._config.failures:
            self.is_healthy, self.reason = False, problem
        if before != (self.is_healthy, self.reason):
            log.info("upstream.health_changed", upstream=self._name, healthy=self.is_healthy, reason=self.reason)

    async def _problem(self, path: str) -> str | None:
        config = self._config
        try:
            async with asyncio.timeout(config.timeout_seconds):
                response = await self._client.send(path, None)
                try:
                    size = 0
                    while size < _MAX_BODY_BYTES and (piece := await response.read_piece()):
                        size += len(piece)
                finally:
                    response.close()
        except TimeoutError:
            return f"GET {path} was not answered within {config.timeout_seconds:g} seconds"
        except GatewayError as error:
            return error.detail
        if response.status < 300 or response.status in _HEALTHY_STATUSES:
            return None
        remedy = (
            "check api_key"
            if response.status == 401
            else "set health.path to a path that answers 200 when the upstream is healthy"
        )
        return f"GET {path} answered {response.status}; {remedy}"
