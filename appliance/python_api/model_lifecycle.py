"""The lifecycle of a model written in Python: loaded once, checked in the background, stopped once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from appliance.core.errors import ApplianceError, EngineDeadError, LoadError, UnavailableError
from appliance.python_api.base_model import BasePythonModel, overridden_method
from appliance.python_api.user_code import UserCodeError, call_method, code_name, describe_exception, user_code

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_ATTRIBUTE = "_appliance_lifecycle"

# Longer than a garbage collection or a slow disk, shorter than a platform waits before it gives up.
_HEALTH_TIMEOUT_SECONDS = 30.0

# Health is checked twice a second, and a fault usually stays.
_LOG_INTERVAL_SECONDS = 600.0


class ModelLifecycle:
    """Loads a model for its first owner and stops it after its last one: several adapters may share a model."""

    def __init__(self, model: BasePythonModel) -> None:
        self._model = model
        self._health = HealthPoller(overridden_method(model, "healthy"))
        self._owners: set[object] = set()
        self._lock = asyncio.Lock()

    @staticmethod
    def of(model: BasePythonModel) -> ModelLifecycle:
        """Return the one lifecycle of a model."""
        lifecycle: ModelLifecycle = vars(model).setdefault(_ATTRIBUTE, ModelLifecycle(model))
        return lifecycle

    async def start(self, owner: object, artifacts: Mapping[str, Path]) -> None:
        """Load the model and its backing, unless that is done.

        Raises:
            LoadError: its `load` failed.
        """
        async with self._lock:
            is_first = not self._owners
            self._owners.add(owner)
            if is_first:
                await self._load(artifacts)

    async def check(self) -> None:
        """Return at once if the model is healthy.

        Raises:
            EngineDeadError: it cannot answer any more.
            UnavailableError: it cannot answer now.
        """
        if self._model.backing is not None:
            await self._model.backing.check()
        if not self._model.ready:
            raise UnavailableError("its attribute `ready` is False")
        self._health.check()

    async def stop(self, owner: object) -> None:
        """Stop the model if this is its last owner; safe to call twice."""
        async with self._lock:
            if owner in self._owners and len(self._owners) == 1:
                await self._stop()
            self._owners.discard(owner)

    async def _load(self, artifacts: Mapping[str, Path]) -> None:
        model = self._model
        if model.backing is not None:
            await model.backing.load(artifacts)
        if "model" in artifacts:
            model.model_dir = artifacts["model"]
        try:
            is_loaded = model.ready or await call_method(model.load) is not False
        except UserCodeError as error:
            raise LoadError(f"{error}; the log says where in your code") from error
        if not is_loaded:
            raise LoadError(f"{type(model).__name__}.load() returned False; its own log may say why")
        model.ready = True
        await self._health.start()

    async def _stop(self) -> None:
        await self._health.close()
        stop = overridden_method(self._model, "stop")
        if stop is not None:
            # It is logged, and the backing is closed all the same.
            with suppress(UserCodeError):
                await call_method(stop)
        if self._model.backing is not None:
            await self._model.backing.close()


class HealthPoller:
    """Runs a model's `healthy` in the background, so that a slow one blocks no probe; without one, all is well."""

    def __init__(self, healthy: Callable[..., Any] | None) -> None:
        self._healthy = healthy
        self._started_at = 0.0
        self._task: asyncio.Task[bool] | None = None
        self._logged_at: dict[object, float] = {}
        """When each kind of fault was logged, since the model was last healthy."""

    async def start(self) -> None:
        """Run it once, and wait for the result."""
        if self._healthy is not None:
            await asyncio.wait({self._run(self._healthy)}, timeout=_HEALTH_TIMEOUT_SECONDS)

    def check(self) -> None:
        """Return if the last result was good, and run it again.

        Raises:
            EngineDeadError: the model cannot answer any more.
            UnavailableError: it cannot answer now.
        """
        if self._healthy is None or self._task is None:
            return
        if self._task.done():
            finished = self._task
            self._run(self._healthy)
            self._evaluate(finished)
        elif (seconds := time.monotonic() - self._started_at) > _HEALTH_TIMEOUT_SECONDS:
            raise UnavailableError(f"its healthy() has not returned for {seconds:.0f} seconds")

    async def close(self) -> None:
        """Cancel the running check."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _run(self, healthy: Callable[..., Any]) -> asyncio.Task[bool]:
        self._started_at = time.monotonic()
        self._task = asyncio.create_task(_is_healthy(healthy))
        return self._task

    def _evaluate(self, task: asyncio.Task[bool]) -> None:
        try:
            is_healthy = task.result()
        except (EngineDeadError, UnavailableError):
            raise
        except (ApplianceError, NotImplementedError) as error:
            # Clients see the text of what is raised here: the error itself is for the log.
            self._log(error)
            raise UnavailableError("its healthy() raised an error; the log says why") from error
        self._logged_at.clear()
        if not is_healthy:
            raise UnavailableError("its healthy() returned False")

    def _log(self, error: Exception) -> None:
        """Log a fault that is new or was not logged for long; its text may contain the time, so its kind decides."""
        now = time.monotonic()
        frames = error.frames if isinstance(error, UserCodeError) else ()
        kind = (type(error.__cause__ or error), *frames)
        if now - self._logged_at.get(kind, -_LOG_INTERVAL_SECONDS) < _LOG_INTERVAL_SECONDS:
            return
        self._logged_at[kind] = now
        if isinstance(error, UserCodeError):
            error.log()
        log.error("model.unhealthy", reason=describe_exception(error))


async def _is_healthy(healthy: Callable[..., Any]) -> bool:
    # The conversion to bool may run code of the user too.
    with user_code(code_name(healthy), is_logged=False):
        return bool(await call_method(healthy, is_logged=False))
