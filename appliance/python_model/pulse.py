"""
The health of a model written in Python: asked in the background, so that a slow answer holds up nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog

from appliance.errors import ApplianceError, EngineDeadError, UnavailableError
from appliance.python_model.calling import called
from appliance.python_model.user_code import UserCodeError, reason_of

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# Longer than a garbage collection or a slow disk, shorter than a platform waits before it gives up.
_SILENCE_SECONDS = 30.0


class Pulse:
    """
    What a model's own `healthy` said last; without one, all is well.
    """

    def __init__(self, healthy: Callable[..., Any] | None, silence_seconds: float = _SILENCE_SECONDS) -> None:
        self._healthy = healthy
        self._silence_seconds = silence_seconds
        self._asked = 0.0
        self._fault: str | None = None
        self._task: asyncio.Task[Any] | None = None

    async def begin(self) -> None:
        """
        Ask the first time, and wait for what it says.
        """
        if self._healthy is not None:
            self._ask(self._healthy)
            await asyncio.wait({self._asking}, timeout=self._silence_seconds)

    def check(self) -> None:
        """
        Return where it was well when it was asked last, and ask again.

        Raises:
            EngineDeadError: it never will answer again.
            UnavailableError: it does not now.
        """
        if self._healthy is None:
            return
        if self._asking.done():
            said = self._asking
            self._ask(self._healthy)
            self._judge(said)
        elif (silent := time.monotonic() - self._asked) > self._silence_seconds:
            raise UnavailableError(f"its healthy() has not returned for {silent:.0f} seconds")

    async def close(self) -> None:
        """
        Ask no more.
        """
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def _asking(self) -> asyncio.Task[Any]:
        if self._task is None:
            raise AssertionError("asked before it began; this is a bug")
        return self._task

    def _judge(self, task: asyncio.Task[Any]) -> None:
        try:
            is_healthy = task.result()
        except (EngineDeadError, UnavailableError):
            raise
        except (UserCodeError, NotImplementedError, ApplianceError) as error:
            # Clients hear the text of what is raised here: the error itself is for the log, and said there once.
            if repr(error) != self._fault:
                self._fault = repr(error)
                log.error("model.unhealthy", reason=reason_of(error))
            raise UnavailableError("its healthy() raised an error; the log says why") from error
        self._fault = None
        if not is_healthy:
            raise UnavailableError("its healthy() returned False")

    def _ask(self, healthy: Callable[..., Any]) -> None:
        self._asked = time.monotonic()
        self._task = asyncio.create_task(called(healthy))
