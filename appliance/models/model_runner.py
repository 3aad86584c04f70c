"""The lifecycle of one model: fetch, load, warm up, watch, restart, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field, replace

import structlog

from appliance.config.limits import SloConfig, share
from appliance.config.models import ModelConfig
from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import ApplianceError, EngineDeadError, LoadError, RequestError, UnavailableError
from appliance.core.model import (
    FollowsAnotherNode,
    LimitsConcurrency,
    MayBeUnproven,
    Model,
    ModelRequest,
    Peers,
    Preparable,
    ReportsMemory,
)
from appliance.limits.queue import RequestQueue
from appliance.models import dispatch
from appliance.models.factory import ModelFactory
from appliance.models.fetch import FetchedArtifacts, FetchProgress, fetch_artifacts
from appliance.models.model_status import ModelStatus, PlanVsActual
from appliance.models.presets import RequestPresets
from appliance.models.restart_policy import RestartPolicy, RestartTracker
from appliance.models.state import State
from appliance.models.vllm_model import VllmModel
from appliance.planner.predictor_plan import PredictorPlan
from appliance.storage.download import on_wait
from appliance.tensors.codec import LENGTH_HEADER

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# A dead engine must show within two seconds.
_CHECK_SECONDS = 0.5

# The response to the warm-up request may include compilation.
_WARMUP_SECONDS = 300.0

_WATCHED = frozenset({State.READY, State.FOLLOWING, State.UNAVAILABLE, State.DRAINING})


@dataclass(slots=True)
class RunnerContext:
    """What the models of one server share."""

    peers: Peers
    factory: ModelFactory
    storage: Callable[[], GlobalStorageConfig]
    """Returns the config for a download that begins now."""
    restart_policy: RestartPolicy
    is_serving: Callable[[ModelStatus], bool]
    """Whether requests reach a model. Those that a reload adds or removes never end the process."""
    end_process: Callable[[int], None]
    """Ends the process with an exit code."""
    engine_turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Lets one engine start at a time, because each measures the memory that the earlier ones left."""
    closed_models: int = 0


class ModelRunner:
    """Runs one model through its states; the only writer of its status."""

    def __init__(self, config: ModelConfig, context: RunnerContext) -> None:
        self._context = context
        front_end = context.peers.front_end
        limits = config.limits.share(front_end.count)
        traffic = None if front_end.traffic is None else front_end.traffic.of_model(config.name, front_end.number)
        self.status = ModelStatus(
            config,
            context.factory.create(config, context.peers),
            RequestQueue(limits, config.slo, shared_traffic=traffic),
            RequestQueue(limits, SloConfig()),
            RequestPresets(config),
        )
        self._artifacts = FetchedArtifacts()
        self._deaths = RestartTracker(context.restart_policy)
        self._task: asyncio.Task[None] | None = None
        self.has_loaded = asyncio.Event()
        """The load that `start` began has ended, successful or not."""
        self._is_stopped = False
        self._unloading = asyncio.Lock()
        """Held while the loaded model is closed, so that nothing is loaded in its place before."""
        self._drain_reason: str | None = None
        """The argument of `start_draining`, for a model that only becomes ready afterwards."""

    def start(self) -> None:
        """Start to load the model, and then to watch it; returns at once."""
        self._task = asyncio.create_task(self._run())

    async def fetch(self) -> None:
        """Download the model's files before its turn to load; does nothing for a model without storage."""
        try:
            await self._fetch()
        except Exception as error:
            await self._fail(error)

    async def load(self) -> None:
        """Download the files, unless that is done, and load the model. A first load that fails is not retried."""
        try:
            async with self._unloading:
                if self.status.state is State.PENDING:
                    await self._fetch()
                # Not during the download, or restarts would wait for the download of another model.
                async with self._engine_turn():
                    await self._load_undisturbed()
        except Exception as error:
            await self._fail(error)

    async def unload(self, timeout_seconds: float, reason: str) -> None:
        """Drain a model that serves, and unload it once its requests have ended or the timeout is over."""
        self.change_state(State.DRAINING, reason)
        await dispatch.wait_idle([self.status], timeout_seconds)
        # It may have died meanwhile.
        if self.status.state is State.DRAINING:
            self.change_state(State.UNLOADED, reason)
            # Outside the turn, because the load of another model may be waiting for this memory.
            async with self._unloading:
                await self._close()
                self.status.model = self._new_model()
                self._artifacts.close()
                self._artifacts = FetchedArtifacts()
                self.status.progress = self.status.plan = None

    def start_draining(self, reason: str, *, accepts_requests: bool) -> None:
        """Drain the model because the server stops; `accepts_requests` says whether new requests are still answered."""
        self.status.accepts_while_draining, self._drain_reason = accepts_requests, reason
        if self._may_become(State.DRAINING):
            self.change_state(State.DRAINING, reason)
        elif self.status.state is State.DRAINING:
            self.status.reason = reason

    async def drain_and_stop(self, timeout_seconds: float, reason: str) -> None:
        """End a model that no new request reaches, once its requests have ended or the timeout is over."""
        if self._may_become(State.DRAINING):
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
        if self._may_become(State.STOPPED):
            self.change_state(State.STOPPED, reason)

    def apply(self, config: ModelConfig) -> None:
        """Continue with a config that differs in hot keys only."""
        self.status.config, self.status.presets = config, RequestPresets(config)
        limits = config.limits.share(self._context.peers.front_end.count)
        self.status.queue.apply(limits, config.slo)
        self.status.tokenizer_queue.apply(limits, SloConfig())

    def continue_from(self, replaced: ModelRunner) -> None:
        """Take over the counts of the model that this one replaces."""
        self.status.requests = replaced.status.requests
        self.status.restarts = replaced.status.restarts

    def change_state(self, state: State, reason: str) -> None:
        """Move the model to another state, and log it."""
        status = self.status
        if not self._may_become(state):
            raise AssertionError(f"{status.name}: {status.state} cannot become {state}; this is a bug")
        write = log.error if state in {State.FAILED, State.RESTARTING} else log.info
        write("model.state_changed", model=status.name, **{"from": status.state}, to=state, reason=reason)
        status.enter(state, reason)
        if state in {State.READY, State.FOLLOWING} and self._drain_reason is not None:
            self.start_draining(self._drain_reason, accepts_requests=status.accepts_while_draining)

    def _may_become(self, state: State) -> bool:
        return state in self.status.rule.next_states

    def _engine_turn(self) -> AbstractAsyncContextManager[object]:
        """Return what the model holds while it starts; without an engine it starts at any time."""
        return self._context.engine_turn if self.status.config.has_engine else contextlib.nullcontext()

    def _new_model(self) -> Model:
        return self._context.factory.create(self.status.config, self._context.peers)

    async def _run(self) -> None:
        await self.load()
        self.has_loaded.set()
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
        on_wait.set(status.progress.wait)
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
        has_engine, closed_models = self.status.config.has_engine, self._context.closed_models
        try:
            await self._load("starting the engine" if has_engine else "loading")
        except Exception as error:
            if not has_engine or self._context.closed_models == closed_models:
                raise
            await self._replace_model(f"{self._reason_of(error)}; another model was closed at the same time")
            await self._load("starting the engine again")

    async def _load(self, reason: str) -> None:
        status, model = self.status, self.status.model
        self.change_state(State.LOADING, reason)
        if isinstance(model, VllmModel) and not isinstance(self._artifacts.plan, PredictorPlan):
            model.plan = self._artifacts.plan
        await model.load(self._artifacts.paths)
        # No more requests at once than the loaded engine computes, divided by the workers that share it.
        maximum = model.max_concurrent if isinstance(model, LimitsConcurrency) else None
        concurrent = share(maximum, self._context.peers.front_end.count)
        status.queue.engine_concurrent = status.tokenizer_queue.engine_concurrent = concurrent
        request = model.warmup_request
        self.change_state(State.PROVING, "checking its health" if request is None else "sending the warm-up request")
        if status.plan is not None:
            measured = model.measured() if isinstance(model, ReportsMemory) else {}
            load_seconds = round(status.timings.seconds()[State.LOADING], 1)
            status.plan = replace(status.plan, measured={**measured, "load_seconds": load_seconds})
            log.info("model.measured", model=status.name, **status.plan.describe(), ratio=status.plan.ratios)
        if request is None:
            await self._check()
        else:
            await run_warmup(model, request)
            self.change_state(State.READY, "the warm-up request succeeded")
        log.info("model.loaded", model=status.name, **status.describe_load())
        self._deaths.mark_alive()

    async def _check(self) -> None:
        """Check the model's health, and change its state if that is another one now.

        Raises:
            EngineDeadError: it cannot answer any more.
        """
        status = self.status
        try:
            await status.model.check()
        except UnavailableError as error:
            if self._may_become(State.UNAVAILABLE):
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
            unproven = status.model.unproven if isinstance(status.model, MayBeUnproven) else None
            self.change_state(State.READY, unproven or "healthy")

    async def _handle_death(self, error: Exception) -> None:
        """Restart a model that died, if the config asks for it, until it is ready or died too often."""
        while self.status.config.failure_action == "restart" and self._may_become(State.RESTARTING):
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
        await self._fail(error)

    async def _restart(self, reason: str) -> None:
        status, pause = self.status, self._deaths.pause_seconds
        status.restarts += 1
        await self._replace_model(f"{reason}; restart {status.restarts} begins in {pause:.1f} seconds")
        await asyncio.sleep(pause)
        async with self._engine_turn():
            await self._load(f"restart {status.restarts}, because {reason}")

    async def _replace_model(self, reason: str) -> None:
        self.change_state(State.RESTARTING, reason)
        await self._close()
        self.status.model = self._new_model()

    async def _fail(self, error: Exception, reason: str | None = None) -> None:
        self.change_state(State.FAILED, reason or self._reason_of(error))
        # Before the model is closed, so that the process ends even if that hangs.
        if self.status.config.failure_action == "exit" and self._context.is_serving(self.status):
            self._context.end_process(error.exit_code if isinstance(error, ApplianceError) else 1)
        await self._close()

    async def _close(self) -> None:
        await self.status.model.close()
        self._context.closed_models += 1

    def _reason_of(self, error: Exception) -> str:
        """Return the reason for probes; an unexpected error is logged with its traceback."""
        if isinstance(error, ApplianceError):
            return str(error)
        log.error("model.unexpected_error", model=self.status.name, exc_info=error)
        return f"unexpected {type(error).__name__}: {error}"


async def run_warmup(model: Model, request: ModelRequest) -> None:
    """Send the warm-up request: a real response proves that a loaded model works.

    Raises:
        LoadError: there is no response, or it is an error or empty.
    """
    try:
        response = await asyncio.wait_for(model.handle(request), _WARMUP_SECONDS)
    except TimeoutError as error:
        raise LoadError(f"the warm-up request had no response within {_WARMUP_SECONDS:.0f} seconds") from error
    except RequestError as error:
        raise LoadError(f"the warm-up request was refused: {error}") from error
    except EngineDeadError as error:
        # Not a death: a restart would repeat it.
        raise LoadError(
            "the engine died during the warm-up request, so it cannot compute this model; see the log"
        ) from error
    if isinstance(response.body, bytes) and response.status >= 400:
        raise LoadError(f"the warm-up request was refused: {response.body.decode(errors='replace')}")
    if isinstance(response.body, bytes):
        # Without the bytes of tensors after it.
        is_empty = not json.loads(response.body[: int(response.headers.get(LENGTH_HEADER, len(response.body)))])
    else:
        async with aclosing(response.body) as stream:
            is_empty = not await asyncio.wait_for(anext(stream, b""), _WARMUP_SECONDS)
    if is_empty:
        raise LoadError("the response to the warm-up request was empty")
