"""The lifecycle of one model: fetch, load, warm up, watch, restart, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import structlog

from appliance.config.limits import SloConfig, share
from appliance.config.models import ModelConfig
from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import ApplianceError, EngineDeadError, UnavailableError
from appliance.core.model import FollowsAnotherNode, LimitsConcurrency, Model, Peers, Preparable
from appliance.limits import QueueSettings, RequestQueue
from appliance.models import dispatch
from appliance.models.factory import ModelFactory
from appliance.models.fetch import NO_ARTIFACTS, FetchProgress, fetch_artifacts
from appliance.models.model_status import ModelStatus, PlanVsActual
from appliance.models.restart_policy import RestartPolicy, RestartTracker
from appliance.models.state import RULES, State
from appliance.models.vllm_model import VllmModel
from appliance.models.warmup import run_warmup

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# A dead engine must show within two seconds.
_CHECK_SECONDS = 0.5

_WATCHED = frozenset({State.READY, State.FOLLOWING, State.UNAVAILABLE, State.DRAINING})


@dataclass(slots=True)
class EngineTurn:
    """Lets one engine start at a time, because each measures the memory that the earlier ones left."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    closed_models: int = 0

    def of(self, config: ModelConfig) -> AbstractAsyncContextManager[object]:
        """Return what a model holds while it starts; models without an engine start at any time."""
        return self.lock if config.has_engine else contextlib.nullcontext()


@dataclass(frozen=True, slots=True)
class RunnerContext:
    """What the models of one server share."""

    peers: Peers
    factory: ModelFactory
    storage: Callable[[], GlobalStorageConfig]
    """Returns the config for a download that begins now."""
    turn: EngineTurn
    restart_policy: RestartPolicy
    is_serving: Callable[[ModelStatus], bool]
    """Whether requests reach a model. Those that a reload adds or removes never end the process."""
    end_process: Callable[[int], None]
    """Ends the process with an exit code."""


class ModelRunner:
    """Runs one model through its states; the only writer of its status."""

    def __init__(self, config: ModelConfig, context: RunnerContext) -> None:
        self._context = context
        settings, tokenizer_settings = self._queue_settings(config)
        self.status = ModelStatus(
            config,
            context.factory.create(config, context.peers),
            RequestQueue(config.name, settings),
            RequestQueue(config.name, tokenizer_settings),
        )
        self._artifacts = NO_ARTIFACTS
        self._deaths = RestartTracker(context.restart_policy)
        self._task: asyncio.Task[None] | None = None
        self._has_loaded = asyncio.Event()
        self._is_stopped = False
        self._unloading = asyncio.Lock()
        """Held while the loaded model is closed, so that nothing is loaded in its place before."""
        self._pending_drain: tuple[str, bool] | None = None
        """The arguments of `start_draining`, for a model that only becomes ready afterwards."""

    def start(self) -> None:
        """Start to load the model, and then to watch it; returns at once."""
        self._task = asyncio.create_task(self._run())

    async def wait_loaded(self) -> None:
        """Wait until the load that `start` began has ended, successful or not."""
        await self._has_loaded.wait()

    async def fetch(self) -> None:
        """Download the model's files before its turn to load; does nothing for a model without storage."""
        try:
            await self._fetch()
        except Exception as error:
            await self._fail(error, self._reason_of(error))

    async def load(self) -> None:
        """Download the files, unless that is done, and load the model. A first load that fails is not retried."""
        try:
            async with self._unloading:
                if self.status.state is State.PENDING:
                    await self._fetch()
                # Not during the download, or restarts would wait for the download of another model.
                async with self._context.turn.of(self.status.config):
                    await self._load_undisturbed()
        except Exception as error:
            await self._fail(error, self._reason_of(error))

    async def unload(self, timeout_seconds: float, reason: str) -> None:
        """Unload a model that is draining, once its requests have ended or the timeout is over."""
        await dispatch.wait_idle([self.status], timeout_seconds)
        # It may have died meanwhile.
        if self.status.state is State.DRAINING:
            self.change_state(State.UNLOADED, reason)
            # Outside the turn, because the load of another model may be waiting for this memory.
            async with self._unloading:
                await self._close()
                self.status.model = self._new_model()
                self._artifacts.close()
                self._artifacts = NO_ARTIFACTS
                self.status.progress = self.status.plan = None

    def start_draining(self, reason: str, *, accepts_requests: bool) -> None:
        """Drain the model because the server stops; `accepts_requests` says whether new requests are still answered."""
        self.status.accepts_while_draining, self._pending_drain = accepts_requests, (reason, accepts_requests)
        if State.DRAINING in RULES[self.status.state].next_states:
            self.change_state(State.DRAINING, reason)
        elif self.status.state is State.DRAINING:
            self.status.reason = reason

    async def drain_and_stop(self, timeout_seconds: float, reason: str) -> None:
        """End a model that no new request reaches, once its requests have ended or the timeout is over."""
        if State.DRAINING in RULES[self.status.state].next_states:
            self.change_state(State.DRAINING, reason)
            await dispatch.wait_idle([self.status], timeout_seconds)
        await self.stop(reason)

    async def stop(self, reason: str) -> None:
        """End at once; the thread of a download ends by itself."""
        self._is_stopped = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._close()
        self._artifacts.close()
        if State.STOPPED in RULES[self.status.state].next_states:
            self.change_state(State.STOPPED, reason)

    def apply(self, config: ModelConfig) -> None:
        """Continue with a config that differs in hot keys only."""
        self.status.config = config
        settings, tokenizer_settings = self._queue_settings(config)
        self.status.queue.apply(settings)
        self.status.tokenizer_queue.apply(tokenizer_settings)

    def continue_from(self, replaced: ModelRunner) -> None:
        """Take over the counts of the model that this one replaces."""
        self.status.requests.totals = replaced.status.requests.totals
        self.status.restarts = replaced.status.restarts

    def change_state(self, state: State, reason: str) -> None:
        """Move the model to another state, and log it."""
        status = self.status
        if state not in RULES[status.state].next_states:
            raise AssertionError(f"{status.name}: {status.state} cannot become {state}; this is a bug")
        write = log.error if state in {State.FAILED, State.RESTARTING} else log.info
        write("model.state_changed", model=status.name, **{"from": status.state}, to=state, reason=reason)
        status.enter(state, reason)
        if state in {State.READY, State.FOLLOWING} and self._pending_drain is not None:
            drain_reason, accepts_requests = self._pending_drain
            self.start_draining(drain_reason, accepts_requests=accepts_requests)

    def _queue_settings(self, config: ModelConfig) -> tuple[QueueSettings, QueueSettings]:
        """Return those of the model's queue and of its tokenizer's, which has no service level objective."""
        workers = self._context.peers.front_end.count
        settings = QueueSettings(config.limits, config.slo).share(workers)
        return settings, QueueSettings(settings.limits, SloConfig())

    def _new_model(self) -> Model:
        return self._context.factory.create(self.status.config, self._context.peers)

    async def _run(self) -> None:
        await self.load()
        self._has_loaded.set()
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            if self.status.state not in _WATCHED:
                continue
            try:
                await self._check()
            except EngineDeadError as error:
                # A model that was unloaded meanwhile has not died.
                if self.status.state in _WATCHED and not self.status.is_released:
                    await self._handle_death(error)

    async def _fetch(self) -> None:
        status, storage = self.status, self._context.storage()
        if not status.config.storages:
            return
        self.change_state(State.FETCHING, "downloading")
        # The part of the start that needs no files runs during the download.
        if isinstance(status.model, Preparable):
            status.model.prepare(storage.cache_dir)
        status.progress = FetchProgress()
        on_progress = status.progress.reporter(status.name, lambda: self._is_stopped)
        self._artifacts = await asyncio.to_thread(
            fetch_artifacts, self._context.factory, status.config, storage, on_progress
        )
        status.digests = self._artifacts.digests
        status.plan = PlanVsActual.of(self._artifacts.plan) if self._artifacts.plan else None
        status.reason = "downloaded; waiting for its turn to load"

    async def _load_undisturbed(self) -> None:
        """Load the model; retry if another model was closed meanwhile, because vLLM fails when memory becomes free
        while it measures.
        """
        has_engine, closed_models = self.status.config.has_engine, self._context.turn.closed_models
        try:
            await self._load("starting the engine" if has_engine else "loading")
        except Exception as error:
            if not has_engine or self._context.turn.closed_models == closed_models:
                raise
            await self._replace_model(f"{self._reason_of(error)}; another model was closed at the same time")
            await self._load("starting the engine again")

    async def _load(self, reason: str) -> None:
        status, model = self.status, self.status.model
        self.change_state(State.LOADING, reason)
        if isinstance(model, VllmModel):
            model.plan = self._artifacts.plan
        await model.load(self._artifacts.paths)
        self._limit_concurrency()
        request = model.warmup_request
        self.change_state(State.PROVING, "checking its health" if request is None else "sending the warm-up request")
        if status.plan is not None:
            status.plan = status.plan.measure(model, status.timings.seconds()[State.LOADING])
            log.info("model.measured", model=status.name, **status.plan.describe(), ratio=status.plan.ratios)
        if request is None:
            await self._check()
        else:
            await run_warmup(model, request)
            self.change_state(State.READY, "the warm-up request succeeded")
        log.info("model.loaded", model=status.name, **status.describe_load())
        self._deaths.mark_alive()

    def _limit_concurrency(self) -> None:
        """Let in no more requests at once than the loaded engine computes, divided by the workers that share it."""
        model = self.status.model
        maximum = model.max_concurrent if isinstance(model, LimitsConcurrency) else None
        concurrent = share(maximum, self._context.peers.front_end.count)
        self.status.queue.engine_concurrent = self.status.tokenizer_queue.engine_concurrent = concurrent

    async def _check(self) -> None:
        """Check the model's health, and change its state if that is another one now.

        Raises:
            EngineDeadError: it cannot answer any more.
        """
        status = self.status
        try:
            await status.model.check()
        except UnavailableError as error:
            if State.UNAVAILABLE in RULES[status.state].next_states:
                self.change_state(State.UNAVAILABLE, str(error))
            elif status.state is State.UNAVAILABLE and status.reason != str(error):
                status.reason = str(error)
                log.info("model.still_unavailable", model=status.name, reason=status.reason)
            return
        if status.state not in {State.PROVING, State.UNAVAILABLE}:
            return
        if isinstance(status.model, FollowsAnotherNode):
            self.change_state(State.FOLLOWING, f"computes for {status.model.leader}, which answers")
        else:
            self.change_state(State.READY, "healthy")

    async def _handle_death(self, error: Exception) -> None:
        """Restart a model that died, if the config asks for it, until it is ready or died too often."""
        while self.status.config.failure_action == "restart" and (
            State.RESTARTING in RULES[self.status.state].next_states
        ):
            self._deaths.count()
            reason = self._reason_of(error)
            if self._deaths.is_loop:
                deaths = f"{self._deaths.in_a_row} deaths within {self._deaths.row_seconds:.0f} seconds"
                await self._fail(error, f"{reason}; not restarted after {deaths}")
                return
            try:
                await self._restart(reason)
            except Exception as next_error:
                error = next_error
            else:
                return
        await self._fail(error, self._reason_of(error))

    async def _restart(self, reason: str) -> None:
        status, pause = self.status, self._deaths.pause_seconds
        status.restarts += 1
        await self._replace_model(f"{reason}; restart {status.restarts} begins in {pause:.1f} seconds")
        await asyncio.sleep(pause)
        async with self._context.turn.of(status.config):
            await self._load(f"restart {status.restarts}, because {reason}")

    async def _replace_model(self, reason: str) -> None:
        self.change_state(State.RESTARTING, reason)
        await self._close()
        self.status.model = self._new_model()

    async def _fail(self, error: Exception, reason: str) -> None:
        self.change_state(State.FAILED, reason)
        # Before the model is closed, so that the process ends even if that hangs.
        if self.status.config.failure_action == "exit" and self._context.is_serving(self.status):
            self._context.end_process(error.exit_code if isinstance(error, ApplianceError) else 1)
        await self._close()

    async def _close(self) -> None:
        await self.status.model.close()
        self._context.turn.closed_models += 1

    def _reason_of(self, error: Exception) -> str:
        """Return the reason for probes; an unexpected error is logged with its traceback."""
        if isinstance(error, ApplianceError):
            return str(error)
        log.error("model.unexpected_error", model=self.status.name, exc_info=error)
        return f"unexpected {type(error).__name__}: {error}"
