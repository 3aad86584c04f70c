"""Where each model stands in its life, and the one writer of that: materialize, load, prove, ready, drain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict
from typing import Any

from appliance.auth import Authorizer
from appliance.config import Config
from appliance.config.models import ModelConfig
from appliance.core.errors import UnavailableError
from appliance.core.model import SINGLE_FRONT_END, FrontEnd, ModelRequest, ModelResponse
from appliance.limits import RateLimiter
from appliance.models import dispatch
from appliance.models.directory import ModelDirectory
from appliance.models.exit_signal import ExitSignal
from appliance.models.factory import ModelFactory
from appliance.models.fetch_progress import FetchProgress
from appliance.models.health import ConfigStatus, HealthReport
from appliance.models.model_runner import ModelRunner
from appliance.models.model_status import ModelStatus
from appliance.models.peer_client import PeerClient
from appliance.models.registry import ModelRegistry
from appliance.models.restart_policy import RestartPolicy
from appliance.models.runner_context import RunnerContext, Turn
from appliance.models.state import RULES, State

__all__ = ["RULES", "FetchProgress", "HealthReport", "ModelManager", "ModelStatus", "RestartPolicy", "State"]


class ModelManager:
    """Brings every model of the config to life, watches them, and lets them go.

    `front_end` is this process among those that share its limits and engines.
    """

    def __init__(
        self,
        config: Config,
        front_end: FrontEnd = SINGLE_FRONT_END,
        patience: RestartPolicy = RestartPolicy(),  # noqa: B008 - frozen
        factory: ModelFactory | None = None,
    ) -> None:
        self.config = config
        """What is served now; what can change while we serve is read here each time it is wanted."""
        self.file: ConfigStatus | None = None
        """How the file of the config stands; None where a program made the config."""
        self.access = Authorizer(config.server.auth)
        self.keys = RateLimiter(config.server.key_limits(front_end.count))
        self.ending = ExitSignal()
        """Of the process, where a model's failure asks for it."""
        self._around = RunnerContext(
            peers=PeerClient(lambda name: self.directory.named(name).entry, front_end),
            factory=factory or ModelFactory(),
            storage=lambda: self.config.storage,
            turn=Turn(),
            patience=patience,
            serves=lambda entry: any(each is entry for each in self.entries),
            end=self.ending.begin,
        )
        self.roster = ModelRegistry(self.life(model_config) for model_config in config.models)
        self.directory = ModelDirectory(self.roster, self.access)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Lock()
        self.is_stopping = False
        """Readiness is off, and what comes is asked to go elsewhere."""

    def life(self, model_config: ModelConfig) -> ModelRunner:
        """The life of a model, not begun yet."""
        return ModelRunner(model_config, self._around)

    def apply(self, config: Config) -> None:
        """Serve by a config that differs in hot keys alone."""
        self.config = config
        self.access.apply(config.server.auth)
        self.keys.apply(config.server.key_limits(self._around.peers.front_end.count))

    @property
    def entries(self) -> tuple[ModelStatus, ...]:
        """The models that serve, or are to."""
        return self.roster.entries

    @property
    def is_live(self) -> bool:
        """No model is beyond help."""
        return all(RULES[entry.state].is_live for entry in self.entries)

    @property
    def is_ready(self) -> bool:
        """Every model of the config answers, but for those that an operator unloaded; there is at least one."""
        wanted = [entry for entry in self.entries if entry.state is not State.UNLOADED]
        return not self.is_stopping and bool(wanted) and all(RULES[entry.state].is_ready for entry in wanted)

    @property
    def has_started(self) -> bool:
        """Every model has been ready once, or waits for nothing of ours any more."""
        return all(entry.has_started for entry in self.entries)

    @property
    def retry_after(self) -> int:
        """Seconds after which asking again makes sense."""
        return max(RULES[entry.state].retry_after for entry in self.entries)

    def standing(self) -> HealthReport:
        """All of that at this moment."""
        return HealthReport(
            self.is_live,
            self.is_ready,
            self.has_started,
            self.retry_after,
            models=[entry.describe() for entry in self.entries],
            config=self._shown_file(),
        )

    def _shown_file(self) -> dict[str, Any] | None:  # Any: JSON values
        if self.file is None:
            return None
        return {**asdict(self.file), "coming": [life.entry.describe() for life in self.roster.coming]}

    def begin(self) -> None:
        """Start the load and the watch as tasks; returns at once."""
        for life in self.roster.lives:
            life.begin()

    def find(self, name: str | None) -> ModelStatus:
        """The entry that answers to `name`, for a caller that may use it; see `ModelDirectory.find`.

        Raises:
            CallError: there is none for this caller.
        """
        return self.directory.find(name).entry

    def visible(self) -> Sequence[tuple[ModelStatus, str]]:
        """Every entry under each name that the current caller may use it by."""
        return self.directory.visible()

    async def handle(self, name: str | None, call: ModelRequest) -> ModelResponse:
        """Have the named model answer; None means the only one there is.

        Raises:
            ForbiddenError: the caller's key is not for this.
            CallError: unknown model, unsupported operation, not ready, too much or too slow, or the call is at fault.
            EngineDeadError: the model died over it.
        """
        entry = self.find(name)
        self.access.require_operation(call.operation)
        return await dispatch.handle(entry, call, self.keys)

    async def drain(self, seconds: float, delay: float = 0, dismiss: Callable[[], None] = lambda: None) -> None:
        """Turn readiness off, and wait up to `seconds` for the calls under way.

        New ones are refused at once; with a `delay`, in seconds, they are answered for that long, and as long as others
        are under way. `dismiss` is called for the clients of those, when nobody should be sent here any more.
        """
        self.is_stopping = True
        if delay:
            self._retire(f"the server stops in {delay:g} seconds; calls are still answered", answers=True)
            await asyncio.sleep(delay)
        self._retire("the server is stopping", answers=delay > 0)
        entries = [life.entry for life in self.roster.everyone]
        if any(entry.is_busy for entry in entries):
            dismiss()
            await dispatch.wait_idle(entries, seconds)

    def _retire(self, reason: str, *, answers: bool) -> None:
        for life in self.roster.lives:
            life.retire(reason, answers=answers)

    async def load(self, name: str) -> None:
        """Load a model that was unloaded; returns once it is ready, at once where it is already.

        Raises:
            CallError: unknown model, or one that is neither.
            UnavailableError: it did not become ready.
        """
        life = self.directory.named(name)
        entry = life.entry
        if RULES[entry.state].is_ready:
            return
        entry.require("loaded", State.UNLOADED)
        life.move(State.PENDING, "an operator wants it back")
        await asyncio.shield(self._own(life.load()))
        if not RULES[entry.state].is_ready:
            # An operator asked, who is told why.
            raise UnavailableError(f"The model {name!r} is {entry.state}: {entry.reason}")

    async def unload(self, name: str) -> None:
        """Let a model go until it is loaded again, once its calls under way are done or the time for that is over.

        Raises:
            CallError: unknown model, or one that is not there to be unloaded.
        """
        life = self.directory.named(name)
        life.entry.require("unloaded", State.READY, State.UNAVAILABLE)
        await asyncio.shield(self._own(self.empty(life, "an operator unloaded it")))

    async def empty(self, life: ModelRunner, reason: str) -> None:
        """Unload a model that serves; who calls it is told the reason."""
        life.move(State.DRAINING, reason)
        await life.unload(self.config.server.drain_seconds, reason)

    async def leave(self, life: ModelRunner, reason: str) -> None:
        """Wait until a model that no call finds any more has done its last, and is gone."""
        await life.leave(self.config.server.drain_seconds, reason)
        self.roster.forget(life)

    def let_go(self, life: ModelRunner, reason: str) -> None:
        """The same, without waiting."""
        self._own(self.leave(life, reason))

    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Work that goes on when nobody waits for it any more, and ends with the server."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        """End the load, what still runs, and every engine."""
        self.is_stopping = True
        for task in (tasks := list(self._tasks)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # The web server's end and the process's both ask for it, and may do so at once.
        async with self._closing:
            await asyncio.gather(*(life.stop("the server stopped") for life in self.roster.everyone))
