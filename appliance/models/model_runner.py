"""The life of one model: materialize, load, prove, ready, what follows when it dies, and gone."""

from __future__ import annotations

import asyncio

import structlog

from appliance.config.models import ModelConfig
from appliance.core.errors import ApplianceError, EngineDeadError, UnavailableError
from appliance.models import dispatch
from appliance.models.model_status import ModelStatus
from appliance.models.restart_policy import RestartTracker, reason_of
from appliance.models.runner_context import RunnerContext
from appliance.models.state import RULES, State
from appliance.models.warmup import run_warmup

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# Well inside the two seconds in which a dead engine must show.
_CHECK_SECONDS = 0.5

_WATCHED = frozenset({State.READY, State.FOLLOWING, State.UNAVAILABLE, State.DRAINING})


class ModelRunner:
    """One model from its turn to load until nobody wants it; the one writer of its entry's state."""

    def __init__(self, config: ModelConfig, around: RunnerContext) -> None:
        self.entry = ModelStatus.of(config, around.factory, around.peers)
        self._around = around
        self._deaths = RestartTracker(around.patience)
        self._task: asyncio.Task[None] | None = None
        self._has_loaded = asyncio.Event()
        self._is_abandoned = False
        self._emptying = asyncio.Lock()
        """Held while what was loaded is let go of; nothing is loaded in its place before."""
        self._farewell: tuple[str, bool] | None = None
        """What the server said when it stopped, for a model that is ready only then."""

    def begin(self) -> None:
        """Start to load the model, and then to watch it; returns at once."""
        self._task = asyncio.create_task(self._run())

    async def loaded(self) -> None:
        """Wait until the load that was begun has ended, well or not."""
        await self._has_loaded.wait()

    async def _run(self) -> None:
        await self.load()
        self._has_loaded.set()
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            if self.entry.state in _WATCHED:
                try:
                    await self._look()
                except EngineDeadError as error:
                    # One that was let go of meanwhile has not died, nor one that waits to be.
                    if self.entry.state in _WATCHED and not self.entry.is_done:
                        await self._die(error)

    async def fetch(self) -> None:
        """Bring the bytes before it is the model's turn to load; one without storage has none."""
        try:
            await self._bring()
        except Exception as error:
            await self._fail(error, reason_of(error, self.entry.config.name))

    async def load(self) -> None:
        """Bring the bytes, unless they are here, and start the model; what keeps it from starting would do so again."""
        try:
            async with self._emptying:
                if self.entry.state is State.PENDING:
                    await self._bring()
                # Not while its bytes are on their way: an engine that died would wait for another model's download.
                async with self._around.turn.of(self.entry.config):
                    await self._start_undisturbed()
        except Exception as error:
            await self._fail(error, reason_of(error, self.entry.config.name))

    async def unload(self, seconds: float, reason: str) -> None:
        """Let go of a model that is draining, once its calls are done or `seconds` are over."""
        await dispatch.wait_idle([self.entry], seconds)
        # It may have died meanwhile.
        if self.entry.state is State.DRAINING:
            self.move(State.UNLOADED, reason)
            # Without a turn: what another one's load would wait for is memory.
            async with self._emptying:
                await self._close()
                self.entry.release(self._around.factory.create(self.entry.config, self._around.peers))

    def retire(self, reason: str, *, answers: bool) -> None:
        """The server stops: have the model drain, and say whether new calls are still answered."""
        self.entry.answers_late, self._farewell = answers, (reason, answers)
        if State.DRAINING in RULES[self.entry.state].leaves_to:
            self.move(State.DRAINING, reason)
        elif self.entry.state is State.DRAINING:
            self.entry.reason = reason

    async def leave(self, seconds: float, reason: str) -> None:
        """End, wherever it stands, once the calls under way are done or `seconds` are over; nobody asks it any more."""
        if State.DRAINING in RULES[self.entry.state].leaves_to:
            self.move(State.DRAINING, reason)
            await dispatch.wait_idle([self.entry], seconds)
        await self.stop(reason)

    async def stop(self, reason: str) -> None:
        """End at once; the thread that brings its bytes ends by itself."""
        self._is_abandoned = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._close()
        for hold in self.entry.holds:
            hold.close()
        if State.STOPPED in RULES[self.entry.state].leaves_to:
            self.move(State.STOPPED, reason)

    def apply(self, config: ModelConfig) -> None:
        """Go on by a section that differs in hot keys alone."""
        self.entry.apply(config, self._around.peers.front_end.count)

    def move(self, state: State, reason: str) -> None:
        """Put the entry where it now stands."""
        entry = self.entry
        if state not in RULES[entry.state].leaves_to:
            raise AssertionError(f"{entry.config.name}: {entry.state} does not leave to {state}; this is a bug")
        write = log.error if state in {State.FAILED, State.RESTARTING} else log.info
        write("model.moved", model=entry.config.name, left=entry.state, state=state, reason=reason)
        entry.enter(state, reason)
        if state in {State.READY, State.FOLLOWING} and self._farewell is not None:
            farewell, answers = self._farewell
            self.retire(farewell, answers=answers)

    async def _close(self) -> None:
        await self.entry.model.close()
        self._around.turn.closed += 1

    async def _start_undisturbed(self) -> None:
        """
        Start it, a second time where another model was closed meanwhile: vLLM fails when memory becomes free while it
        measures.
        """
        has_engine, closed = self.entry.config.has_engine, self._around.turn.closed
        try:
            await self._start("the engine is starting" if has_engine else "it is starting")
        except Exception as error:
            if not has_engine or self._around.turn.closed == closed:
                raise
            await self._renew(f"{reason_of(error, self.entry.config.name)}; another model was closed meanwhile")
            await self._start("the engine is starting again")

    async def _renew(self, reason: str) -> None:
        self.move(State.RESTARTING, reason)
        await self._close()
        self.entry.model = self._around.factory.create(self.entry.config, self._around.peers)

    async def _bring(self) -> None:
        entry = self.entry
        if not entry.config.storages:
            return
        self.move(State.FETCHING, "its bytes are being brought")
        await entry.fetch(self._around.factory, self._around.storage(), lambda: self._is_abandoned)
        entry.reason = "its bytes are here; it waits for its turn"

    async def _start(self, reason: str) -> None:
        model = self.entry.model
        self.move(State.LOADING, reason)
        await model.load(self.entry.artifacts)
        self.entry.bound(self._around.peers.front_end.count)
        self.move(State.PROVING, "the first answer is being made")
        self.entry.compare()
        if model.warmup_request is None:
            await self._look()
        else:
            await run_warmup(model, model.warmup_request)
            self.move(State.READY, "it answered")
        log.info("model.loaded", model=self.entry.config.name, **self.entry.load())
        self._deaths.come_alive()

    async def _look(self) -> None:
        """Move the entry to where its model's health says it is, if that is elsewhere.

        Raises:
            EngineDeadError: it will not answer again.
        """
        entry = self.entry
        try:
            await entry.model.check()
        except UnavailableError as error:
            if State.UNAVAILABLE in RULES[entry.state].leaves_to:
                self.move(State.UNAVAILABLE, str(error))
            elif entry.state is State.UNAVAILABLE and entry.reason != str(error):
                # It waits for something else by now.
                entry.reason = str(error)
                log.info("model.waits", model=entry.config.name, state=entry.state, reason=entry.reason)
        else:
            if entry.state in {State.PROVING, State.UNAVAILABLE}:
                self.move(*entry.well())

    async def _die(self, error: Exception) -> None:
        """
        It served, and never will again: start it anew where the config asks for it, until it answers or is given up.
        """
        wants_restart = self.entry.config.recovery == "restart"
        while wants_restart and State.RESTARTING in RULES[self.entry.state].leaves_to:
            self._deaths.count()
            reason = reason_of(error, self.entry.config.name)
            if self._deaths.is_loop:
                row = f"{self._deaths.in_a_row} deaths within {self._deaths.lasted_seconds:.0f} seconds"
                await self._fail(error, f"{reason}; given up after {row}")
                return
            try:
                await self._restart(reason)
            except Exception as next_error:
                error = next_error
            else:
                return
        await self._fail(error, reason_of(error, self.entry.config.name))

    async def _restart(self, reason: str) -> None:
        entry, pause = self.entry, self._deaths.pause_seconds
        entry.restarts += 1
        await self._renew(f"{reason}; restart {entry.restarts} begins in {pause:.1f} seconds")
        await asyncio.sleep(pause)
        async with self._around.turn.of(self.entry.config):
            await self._start(f"restart {entry.restarts}, because {reason}")

    async def _fail(self, error: Exception, reason: str) -> None:
        self.move(State.FAILED, reason)
        # Before the model closes: whatever becomes of that, the process is to end.
        if self.entry.config.recovery == "exit" and self._around.serves(self.entry):
            self._around.end(error.exit_code if isinstance(error, ApplianceError) else 1)
        await self._close()
