"""All models of a server: started, found, drained, loaded and unloaded."""

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
from appliance.models.factory import ModelFactory
from appliance.models.health import ConfigStatus, HealthReport
from appliance.models.model_runner import EngineTurn, ModelRunner, RunnerContext
from appliance.models.model_status import ModelStatus
from appliance.models.peer_client import PeerClient
from appliance.models.registry import ModelRegistry
from appliance.models.restart_policy import RestartPolicy
from appliance.models.state import RULES, State


class ExitSignal:
    """Ends the process with the exit code of the first failure that asks for it; later ones may follow from that."""

    def __init__(self) -> None:
        self._code = 0
        self._is_set = asyncio.Event()

    def set(self, code: int) -> None:
        """End the process with this exit code, unless it ends with another already."""
        if not self._is_set.is_set():
            self._code = code
            self._is_set.set()

    async def wait(self) -> int:
        """Wait until the process is to end, and return its exit code."""
        await self._is_set.wait()
        return self._code


class ModelManager:
    """Runs every model of the config; `front_end` is this process among those that share limits and engines."""

    def __init__(
        self,
        config: Config,
        front_end: FrontEnd = SINGLE_FRONT_END,
        restart_policy: RestartPolicy = RestartPolicy(),  # noqa: B008 - frozen
        factory: ModelFactory | None = None,
    ) -> None:
        self.config = config
        """The config that is served; values that a reload may change are read here each time."""
        self.config_status: ConfigStatus | None = None
        """The status of the config file; None if a program made the config."""
        self.authorizer = Authorizer(config.server.auth)
        self.exit_signal = ExitSignal()
        self.is_stopping = False
        """The server is draining: readiness is 503, and clients are asked to go elsewhere."""
        self._front_end = front_end
        self.rate_limiter = RateLimiter(config.server.key_limits(front_end.count))
        self._context = RunnerContext(
            peers=PeerClient(lambda name: self.registry.resolve(name).status, front_end),
            factory=factory or ModelFactory(),
            storage=lambda: self.config.storage,
            turn=EngineTurn(),
            restart_policy=restart_policy,
            is_serving=lambda status: any(each is status for each in self.statuses),
            end_process=self.exit_signal.set,
        )
        self.registry = ModelRegistry(map(self.new_runner, config.models), self.authorizer)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Lock()

    def new_runner(self, config: ModelConfig) -> ModelRunner:
        """Return the runner of a model, not started."""
        return ModelRunner(config, self._context)

    def apply(self, config: Config) -> None:
        """Serve by a config that differs in hot keys only."""
        self.config = config
        self.authorizer.apply(config.server.auth)
        self.rate_limiter.apply(config.server.key_limits(self._front_end.count))

    def start(self) -> None:
        """Start to load and watch every model; returns at once."""
        for runner in self.registry.runners:
            runner.start()

    @property
    def statuses(self) -> tuple[ModelStatus, ...]:
        """The status of each model of the config."""
        return self.registry.statuses

    @property
    def is_live(self) -> bool:
        """No model has failed for good."""
        return all(RULES[status.state].is_live for status in self.statuses)

    @property
    def is_ready(self) -> bool:
        """Every model of the config answers, except those that an operator unloaded; there is at least one."""
        expected = [status for status in self.statuses if status.state is not State.UNLOADED]
        return not self.is_stopping and bool(expected) and all(RULES[status.state].is_ready for status in expected)

    @property
    def has_started(self) -> bool:
        """Every model has been ready once, or waits for nothing but other servers."""
        return all(status.has_started for status in self.statuses)

    @property
    def retry_after(self) -> int:
        """Seconds after which a client should try again."""
        return max(RULES[status.state].retry_after for status in self.statuses)

    def health(self) -> HealthReport:
        """Return the health of the server and its models now."""
        return HealthReport(
            self.is_live,
            self.is_ready,
            self.has_started,
            self.retry_after,
            models=[status.describe() for status in self.statuses],
            config=self._describe_config(),
        )

    def _describe_config(self) -> dict[str, Any] | None:  # Any: JSON values
        if self.config_status is None:
            return None
        new_models = [runner.status.describe() for runner in self.registry.incoming]
        return {**asdict(self.config_status), "new_models": new_models}

    def find(self, name: str | None) -> ModelStatus:
        """Return the model with this name for the current caller; see `ModelRegistry.find`."""
        return self.registry.find(name).status

    def visible(self) -> Sequence[tuple[ModelStatus, str]]:
        """Return each model under each of the names that the current caller may use."""
        return self.registry.visible()

    async def handle(self, name: str | None, request: ModelRequest) -> ModelResponse:
        """Have the named model answer; None means the only one there is.

        Raises:
            ForbiddenError: the caller's key does not allow it.
            RequestError: unknown model, unsupported operation, not ready, limits exceeded, or a bad request.
            EngineDeadError: the model died during the request.
        """
        status = self.find(name)
        self.authorizer.require_operation(request.operation)
        return await dispatch.handle(status, request, self.rate_limiter)

    async def drain(self, seconds: float, delay: float = 0, on_drained: Callable[[], None] = lambda: None) -> None:
        """Turn readiness off, and wait up to `seconds` for the requests that are running.

        New requests are refused at once. With a `delay` in seconds they are answered during it and as long as others
        are running; after the delay, `on_drained` is called to dismiss the clients of those, if there are any.
        """
        self.is_stopping = True
        if delay:
            self._start_draining(f"the server stops in {delay:g} seconds; requests are still answered", accepts=True)
            await asyncio.sleep(delay)
        self._start_draining("the server is stopping", accepts=delay > 0)
        statuses = [runner.status for runner in self.registry.all_runners]
        if any(status.is_busy for status in statuses):
            on_drained()
            await dispatch.wait_idle(statuses, seconds)

    def _start_draining(self, reason: str, *, accepts: bool) -> None:
        for runner in self.registry.runners:
            runner.start_draining(reason, accepts_requests=accepts)

    async def load(self, name: str) -> None:
        """Load a model that was unloaded; returns once it is ready, at once if it is.

        Raises:
            RequestError: unknown model, or one that is neither unloaded nor ready.
            UnavailableError: it did not become ready.
        """
        runner = self.registry.resolve(name)
        status = runner.status
        if RULES[status.state].is_ready:
            return
        status.require_state("loaded", State.UNLOADED)
        runner.change_state(State.PENDING, "an operator loads it")
        await asyncio.shield(self._in_background(runner.load()))
        if not RULES[status.state].is_ready:
            # With the reason, which other clients do not get: the caller is an operator.
            raise UnavailableError(f"The model {name!r} is {status.state}: {status.reason}")

    async def unload(self, name: str) -> None:
        """Unload a model until it is loaded again, once its requests have ended or the drain time is over.

        Raises:
            RequestError: unknown model, or one that is not loaded.
        """
        runner = self.registry.resolve(name)
        runner.status.require_state("unloaded", State.READY, State.UNAVAILABLE)
        await asyncio.shield(self._in_background(self.drain_and_unload(runner, "an operator unloaded it")))

    async def drain_and_unload(self, runner: ModelRunner, reason: str) -> None:
        """Unload a model that serves; its clients get the reason."""
        runner.change_state(State.DRAINING, reason)
        await runner.unload(self.config.server.drain_seconds, reason)

    async def drain_and_stop(self, runner: ModelRunner, reason: str) -> None:
        """Stop a model that no new request reaches, once its requests have ended, and forget it."""
        await runner.drain_and_stop(self.config.server.drain_seconds, reason)
        self.registry.forget(runner)

    def stop_in_background(self, runner: ModelRunner, reason: str) -> None:
        """Run `drain_and_stop` without waiting for it."""
        self._in_background(self.drain_and_stop(runner, reason))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start work that goes on if its caller is cancelled, and ends with the server."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        """Stop every model, whatever it is doing."""
        self.is_stopping = True
        for task in (tasks := list(self._tasks)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # The web server and the process both call this at their end, perhaps at the same time.
        async with self._closing:
            await asyncio.gather(*(runner.stop("the server stopped") for runner in self.registry.all_runners))
