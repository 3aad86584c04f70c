"""Readiness of a target: proved by one real response, and again after requests without any."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from appliance.adapters.renderer import RenderError
from appliance.adapters.templates import TemplateFaultError
from appliance.core.errors import ApplianceError, EngineDeadError, GatewayError, UnavailableError

# So many requests in a row without any response are not a coincidence.
_MAX_FAILURES = 3

_CHECK_SECONDS = 0.5
_MIN_RETRY_SECONDS, _MAX_RETRY_SECONDS = 1.0, 30.0

# The target may have to start first.
_WARMUP_TIMEOUT_SECONDS = 300.0


@dataclass
class Readiness:
    """Whether the target answers; a task of its own finds it out.

    `check_target` raises what is known of the target without a request; `consecutive_failures` counts the requests in
    a row that got no response.
    """

    send_warmup_request: Callable[[], Awaitable[object]]
    check_target: Callable[[], None]
    consecutive_failures: Callable[[], int]
    _reason: str | None = field(default="sending the warm-up request", init=False)
    _task: asyncio.Task[None] | None = field(default=None, init=False)

    def start(self) -> None:
        """Start the task."""
        self._task = asyncio.create_task(self._watch())

    def check(self) -> None:
        """Return if the target answers.

        Raises:
            EngineDeadError: it cannot answer any more.
            UnavailableError: it cannot answer now.
        """
        self.check_target()
        if self._reason is not None:
            raise UnavailableError(self._reason)

    async def close(self) -> None:
        """End the task; safe to call twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            delay = _MIN_RETRY_SECONDS
            while self._reason is not None:
                await asyncio.sleep(await self._warm_up(delay))
                delay = min(delay * 2, _MAX_RETRY_SECONDS)
            await asyncio.sleep(_CHECK_SECONDS)
            if self.consecutive_failures() >= _MAX_FAILURES:
                self._reason = "its target does not answer"

    async def _warm_up(self, delay: float) -> float:
        """Send the warm-up request, and return the seconds until the next attempt, usually `delay`."""
        try:
            self.check_target()
        except (UnavailableError, EngineDeadError):
            return _CHECK_SECONDS
        try:
            async with asyncio.timeout(_WARMUP_TIMEOUT_SECONDS):
                await self.send_warmup_request()
        except TimeoutError:
            self._reason = f"its target did not respond within {_WARMUP_TIMEOUT_SECONDS:.0f} seconds"
        except GatewayError as error:
            self._reason = f"its target does not answer the first request, because {error.detail}"
        except ApplianceError as error:
            # A template fails before the target gets a request.
            is_template = isinstance(error.__cause__, RenderError | TemplateFaultError)
            problem = "the first request cannot be made" if is_template else "its target refused the first request"
            self._reason = f"{problem}, because {error}"
        else:
            self._reason = None
            return 0.0
        return delay
