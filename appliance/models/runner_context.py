"""What the models of one server share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from appliance.config.models import ModelConfig
from appliance.config.storage import GlobalStorageConfig
from appliance.core.model import Peers
from appliance.models.factory import ModelFactory
from appliance.models.model_status import ModelStatus
from appliance.models.restart_policy import RestartPolicy


@dataclass(slots=True)
class Turn:
    """Which engine may start."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while an engine starts."""

    closed: int = 0
    """How many models were closed so far."""

    def of(self, config: ModelConfig) -> AbstractAsyncContextManager[object]:
        """One engine after the other: each measures the memory that the ones before it left."""
        return self.lock if config.has_engine else contextlib.nullcontext()


@dataclass(frozen=True, slots=True)
class RunnerContext:
    """What each of them lives with."""

    peers: Peers
    factory: ModelFactory
    storage: Callable[[], GlobalStorageConfig]
    """What holds for a fetch that begins now."""

    turn: Turn

    patience: RestartPolicy
    serves: Callable[[ModelStatus], bool]
    """Whether calls find it: of who is on the way in or out, nothing ends the process."""

    end: Callable[[int], None]
    """Told the exit code when the process is to end with a model."""
