"""The life of a model written in Python: loaded once and stopped once, however many answer with its help."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from appliance.core.errors import LoadError, UnavailableError
from appliance.python_api.base_model import BasePythonModel, overridden
from appliance.python_api.health_poller import HealthPoller
from appliance.python_api.invoke import called
from appliance.python_api.user_code import UserCodeError

_LIFE = "_appliance_life"


class ModelLifecycle:
    """From the first owner's beginning to the last one's end."""

    def __init__(self, model: BasePythonModel) -> None:
        self._model = model
        self._pulse = HealthPoller(overridden(model, "healthy"))
        self._owners: set[object] = set()
        self._lock = asyncio.Lock()

    @staticmethod
    def of(model: BasePythonModel) -> ModelLifecycle:
        """The one life of a model."""
        life: ModelLifecycle = vars(model).setdefault(_LIFE, ModelLifecycle(model))
        return life

    async def begin(self, owner: object, artifacts: Mapping[str, Path]) -> None:
        """Load the model, and what it stands on, unless that is done.

        Raises:
            LoadError: its load says that it failed.
        """
        async with self._lock:
            is_first = not self._owners
            self._owners.add(owner)
            if is_first:
                await self._load(artifacts)

    async def check(self) -> None:
        """Return at once where the model is well.

        Raises:
            EngineDeadError: it never will answer again.
            UnavailableError: it does not now.
        """
        if self._model.backing is not None:
            await self._model.backing.check()
        if not self._model.ready:
            raise UnavailableError("its attribute `ready` is False")
        self._pulse.check()

    async def end(self, owner: object) -> None:
        """Stop the model where nobody else needs it; safe to call twice."""
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
            is_loaded = model.ready or await called(model.load) is not False
        except UserCodeError as error:
            raise LoadError(f"{error}; the log says where in your code") from error
        if not is_loaded:
            raise LoadError(f"{type(model).__name__}.load() returned False; its own log may say why")
        model.ready = True
        await self._pulse.begin()

    async def _stop(self) -> None:
        await self._pulse.close()
        stop = overridden(self._model, "stop")
        if stop is not None:
            # Logged, and no reason to leave the rest as it is.
            with suppress(UserCodeError):
                await called(stop)
        if self._model.backing is not None:
            await self._model.backing.close()
