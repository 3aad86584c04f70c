"""The health of a model written in Python: asked in the background, so that a slow answer holds up nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog

from appliance.core.errors import ApplianceError, EngineDeadError, UnavailableError
from appliance.python_api.invoke import returned
from appliance.python_api.user_code import UserCodeError, name_of, reason_of, user_code

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# Longer than a garbage collection or a slow disk, shorter than a platform waits before it gives up.
_SILENCE_SECONDS = 30.0

# It is asked twice a second, and what fails goes on to.
_SECONDS_BETWEEN_LOGS = 600.0


class HealthPoller:
    """What a model's own `healthy` said last; without one, all is well."""

    def __init__(self, healthy: Callable[..., Any] | None, silence_seconds: float = _SILENCE_SECONDS) -> None:
        self._healthy = healthy
        self._silence_seconds = silence_seconds
        self._asked = 0.0
        self._logged: dict[object, float] = {}
        """When each kind of fault was logged, since it was well the last time."""
        self._task: asyncio.Task[bool] | None = None

    async def begin(self) -> None:
        """Ask the first time, and wait for what it says."""
        if self._healthy is not None:
            self._ask(self._healthy)
            await asyncio.wait({self._asking}, timeout=self._silence_seconds)

    def check(self) -> None:
        """Return where it was well when it was asked last, and ask again.

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
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def _asking(self) -> asyncio.Task[bool]:
        if self._task is None:
            raise AssertionError("asked before it began; this is a bug")
        return self._task

    def _judge(self, task: asyncio.Task[bool]) -> None:
        try:
            is_healthy = task.result()
        except (EngineDeadError, UnavailableError):
            raise
        except (UserCodeError, NotImplementedError, ApplianceError) as error:
            # Clients hear the text of what is raised here: the error itself is for the log.
            self._log(error)
            raise UnavailableError("its healthy() raised an error; the log says why") from error
        self._logged.clear()
        if not is_healthy:
            raise UnavailableError("its healthy() returned False")

    def _log(self, error: Exception) -> None:
        """
        Log a fault that is new, or has not been logged for long; its text, which may have the time in it, says neither.
        """
        now = time.monotonic()
        frames = error.frames if isinstance(error, UserCodeError) else ()
        kind = (type(error.__cause__ or error), *frames)
        if now - self._logged.get(kind, -_SECONDS_BETWEEN_LOGS) < _SECONDS_BETWEEN_LOGS:
            return
        self._logged[kind] = now
        if isinstance(error, UserCodeError):
            error.log()
        log.error("model.unhealthy", reason=reason_of(error))

    def _ask(self, healthy: Callable[..., Any]) -> None:
        self._asked = time.monotonic()
        self._task = asyncio.create_task(_answer(healthy))


async def _answer(healthy: Callable[..., Any]) -> bool:
    with user_code(name_of(healthy), is_logged=False):
        return bool(await returned(healthy))
