"""All models of a server: started, found, drained, loaded and unloaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from appliance.auth import Authorizer
from appliance.config import Config
from appliance.config.models import ModelConfig
from appliance.core.errors import RequestError, UnavailableError
from appliance.core.model import SINGLE_FRONT_END, FrontEnd, ModelRequest, ModelResponse
from appliance.core.stored_objects import StoreUsage
from appliance.limits.rate_limiter import RateLimiter
from appliance.models import dispatch
from appliance.models.factory import ModelFactory
from appliance.models.health import ConfigStatus, HealthReport, ModelReport
from appliance.models.model_runner import ModelRunner, RunnerContext
from appliance.models.model_status import ModelStatus
from appliance.models.registry import ModelRegistry
from appliance.models.restart_policy import RestartPolicy
from appliance.models.state import State

# Not while it loads: a new process is not to take over from one whose model is ready.
_ANSWERED_BY_FALLBACK = frozenset({State.UNAVAILABLE, State.RESTARTING, State.FAILED})


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
        self.authorizer = Authorizer(config.server)
        self.exit_code: int | None = None
        """That of the first failure that ends the process; later ones may follow from it."""
        self.exit_requested = asyncio.Event()
        self.stopping = asyncio.Event()
        """Set once the server drains: readiness is 503, and clients are asked to go elsewhere."""
        self.is_stopped = False
        """The models are stopped, or about to be: what waits for them has waited in vain."""
        self.store_usage: dict[str, StoreUsage] = {}
        """The last known size of each store, by its name in metrics."""
        self.front_end = front_end
        """This process among those that share limits, engines and stores."""
        self.rate_limiter = RateLimiter(config.server.key_limits(front_end.count))
        self._context = RunnerContext(
            peers=dispatch.PeerClient(lambda name: self.registry.status_of(name), front_end),
            factory=factory or ModelFactory(),
            storage=lambda: self.config.storage,
            restart_policy=restart_policy,
            is_serving=lambda status: any(each is status for each in self.statuses),
            end_process=self._end_process,
        )
        self.registry = ModelRegistry(map(self.new_runner, config.models), self.authorizer)
        self.find, self.visible = self.registry.find, self.registry.visible
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Lock()

    def new_runner(self, config: ModelConfig) -> ModelRunner:
        """Return the runner of a model, not started."""
        return ModelRunner(config, self._context)

    def apply(self, config: Config) -> None:
        """Serve by a config that differs in hot keys only."""
        self.config = config
        self.authorizer.apply(config.server)
        self.rate_limiter.apply(config.server.key_limits(self.front_end.count))

    def _end_process(self, code: int) -> None:
        if self.exit_code is None:
            self.exit_code = code
        self.exit_requested.set()

    def start(self) -> None:
        """Start to load and watch every model; returns at once."""
        for runner in self.registry.runners:
            runner.start()

    async def wait_until_loaded(self) -> None:
        """Wait until the first load of every model has ended, successful or not."""
        await asyncio.gather(*(runner.has_loaded.wait() for runner in self.registry.runners))

    @property
    def workers(self) -> int:
        """The number of processes that share each limit."""
        return self.front_end.count

    @property
    def is_stopping(self) -> bool:
        """The server drains."""
        return self.stopping.is_set()

    @property
    def statuses(self) -> tuple[ModelStatus, ...]:
        """The status of each model of the config."""
        return self.registry.statuses

    @property
    def is_ready(self) -> bool:
        """Every model of the config answers, except those that an operator unloaded; there is at least one.

        A model that was ready once is also answered for by a fallback that is ready.
        """
        expected = [status for status in self.statuses if status.state is not State.UNLOADED]
        return not self.is_stopping and bool(expected) and all(map(self._is_answered, expected))

    def _is_answered(self, status: ModelStatus) -> bool:
        has_fallback = status.has_started and status.state in _ANSWERED_BY_FALLBACK
        return status.rule.is_ready or (has_fallback and any(each["ready"] for each in self._fallbacks(status)))

    def _fallbacks(self, status: ModelStatus) -> Sequence[Mapping[str, Any]]:
        """Return the fallbacks for a model that is unavailable, and whether each is ready."""
        return [
            {"model": each.model, "ready": target is not None and target.rule.can_answer}
            for each in status.config.fallback
            if "unavailable" in each.on
            for target in [self.registry.status_of(each.model)]
        ]

    def health(self) -> HealthReport:
        """Return the health of the server and its models now."""
        statuses, config = self.statuses, None
        if self.config_status is not None:
            new_models = [runner.status.describe() for runner in self.registry.incoming]
            config = {**asdict(self.config_status), "new_models": new_models}
        return HealthReport(
            is_live=all(status.rule.is_live for status in statuses),
            is_ready=self.is_ready,
            has_started=all(status.has_started for status in statuses),
            retry_after=max(status.rule.retry_after for status in statuses),
            models=[self._describe(status) for status in statuses],
            config=config,
        )

    def _describe(self, status: ModelStatus) -> ModelReport:
        fallbacks = self._fallbacks(status)
        return {**status.describe(), "fallback": fallbacks} if fallbacks else status.describe()

    async def handle(self, name: str | None, request: ModelRequest, *, is_background: bool = False) -> ModelResponse:
        """Have the named model answer, if the caller may use it; None means the only one. See `dispatch.handle`."""
        status = self.find(name)
        self.authorizer.require_operation(request.operation)
        response = await dispatch.handle(
            status,
            request,
            self.rate_limiter,
            name=name,
            is_background=is_background,
            find=self.registry.status_of,
        )
        fallback = response.headers.get(dispatch.FALLBACK_HEADER)
        if fallback is None or self.authorizer.sees(fallback):
            return response
        # The config lets the key use the model, but not know it.
        headers = {key: value for key, value in response.headers.items() if key != dispatch.FALLBACK_HEADER}
        return replace(response, headers=headers)

    async def drain(self, seconds: float, delay: float = 0, on_drained: Callable[[], None] = lambda: None) -> None:
        """Turn readiness off, and wait up to `seconds` for the requests that are running.

        New requests are refused at once. With a `delay` in seconds they are answered during it and as long as others
        are running; after the delay, `on_drained` is called to dismiss the clients of those, if there are any.
        """
        self.stopping.set()
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
        if status.rule.is_ready:
            return
        _require_state(status, "loaded", State.UNLOADED)
        runner.change_state(State.PENDING, "an operator loads it")
        await asyncio.shield(self.in_background(runner.load()))
        if not status.rule.is_ready:
            # With the reason, which other clients do not get: the caller is an operator.
            raise UnavailableError(f"The model {name!r} is {status.state}: {status.reason}")

    async def unload(self, name: str) -> None:
        """Unload a model until it is loaded again, once its requests have ended or the drain time is over.

        Raises:
            RequestError: unknown model, or one that is not loaded.
        """
        runner = self.registry.resolve(name)
        _require_state(runner.status, "unloaded", State.READY, State.UNAVAILABLE)
        unloading = runner.unload(self.config.server.drain_seconds, "an operator unloaded it")
        await asyncio.shield(self.in_background(unloading))

    async def drain_and_stop(self, runner: ModelRunner, reason: str) -> None:
        """Stop a model that no new request reaches, once its requests have ended, and forget it."""
        await runner.drain_and_stop(self.config.server.drain_seconds, reason)
        self.registry.forget(runner)

    def in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start work that goes on if its caller is cancelled, and ends with the server."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        """Stop every model, whatever it is doing."""
        self.stopping.set()
        self.is_stopped = True
        for task in (tasks := list(self._tasks)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # The web server and the process both call this at their end, perhaps at the same time.
        async with self._closing:
            await asyncio.gather(*(runner.stop("the server stopped") for runner in self.registry.all_runners))


def _require_state(status: ModelStatus, action: str, *states: State) -> None:
    if status.state not in states:
        allowed = " or ".join(states)
        raise RequestError(
            f"The model {status.name!r} is {status.state}; it can be {action} when it is {allowed}", status=409
        )
