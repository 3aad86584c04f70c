"""
The life of one model: materialize, load, prove, ready, and what follows when it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime

import structlog

from appliance.contract import Peers
from appliance.errors import ApplianceError, EngineDeadError, UnavailableError
from appliance.lifecycle import calls
from appliance.lifecycle.bringing import bring, reporter
from appliance.lifecycle.deaths import Deaths, Patience
from appliance.lifecycle.entry import Entry
from appliance.lifecycle.progress import Progress
from appliance.lifecycle.proof import prove
from appliance.lifecycle.state import RULES, State
from appliance.models.section import ModelSection
from appliance.storage.section import StorageSettings

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# Well inside the two seconds in which a dead engine must show.
_CHECK_SECONDS = 0.5

_WATCHED = frozenset({State.READY, State.UNAVAILABLE, State.DRAINING})


class Life:
    """
    One model from its turn to load until nobody wants it; the one writer of its entry's state.
    """

    def __init__(
        self,
        section: ModelSection,
        peers: Peers,
        storage: StorageSettings,
        turn: asyncio.Lock,
        patience: Patience,
        end: Callable[[int], None],
    ) -> None:
        """
        `turn` is held while an engine starts; `end` is told the exit code when the process is to end with the model.
        """
        self.entry = Entry(section, section.build(peers))
        self._peers = peers
        self._storage = storage
        self._turn = turn
        self._deaths = Deaths(patience)
        self._end = end
        self._is_abandoned = False

    async def run(self) -> None:
        """
        Load the model, and then watch it, without end.
        """
        await self.load()
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            if self.entry.state in _WATCHED:
                try:
                    await self._look()
                except EngineDeadError as error:
                    await self._die(error)

    async def load(self) -> None:
        """
        Bring the bytes and start the model; what keeps it from starting the first time would do so again.
        """
        try:
            async with self._taking_turns():
                await self._bring()
                await self._start("the engine is starting" if self.entry.section.has_engine else "it is starting")
        except Exception as error:
            await self._fail(error, _reason(self.entry, error))

    async def unload(self, seconds: float) -> None:
        """
        Let go of a model that is draining, once its calls are done or `seconds` are over.
        """
        await calls.quiet([self.entry], seconds)
        # It may have died meanwhile.
        if self.entry.state is State.DRAINING:
            self.move(State.UNLOADED, "an operator unloaded it")
            async with self._turn:
                await self.entry.model.close()
            self.entry.release(self.entry.section.build(self._peers))

    def retire(self, reason: str, *, answers: bool) -> None:
        """
        The server stops: have the model drain, and say whether new calls are still answered.
        """
        self.entry.answers_late = answers
        if State.DRAINING in RULES[self.entry.state].leaves_to:
            self.move(State.DRAINING, reason)
        elif self.entry.state is State.DRAINING:
            self.entry.reason = reason

    def abandon(self) -> None:
        """
        Have the thread that brings its bytes end: nobody waits for it any more.
        """
        self._is_abandoned = True

    def move(self, state: State, reason: str) -> None:
        """
        Put the entry where it now stands.
        """
        entry = self.entry
        if state not in RULES[entry.state].leaves_to:
            raise AssertionError(f"{entry.section.name}: {entry.state} does not leave to {state}; this is a bug")
        write = log.error if state in {State.FAILED, State.RESTARTING} else log.info
        write("model.moved", model=entry.section.name, left=entry.state, state=state, reason=reason)
        entry.state, entry.since, entry.reason = state, datetime.now(UTC), reason
        entry.has_started |= state in {State.READY, State.UNAVAILABLE}

    def _taking_turns(self) -> AbstractAsyncContextManager[None]:
        # One engine after the other: each measures the memory that the ones before it left.
        return self._turn if self.entry.section.has_engine else contextlib.nullcontext()

    async def _bring(self) -> None:
        entry = self.entry
        if not entry.section.storages:
            return
        self.move(State.FETCHING, "its bytes are being brought")
        entry.progress = Progress()
        report = reporter(entry.section.name, entry.progress, lambda: self._is_abandoned)
        brought = await asyncio.to_thread(bring, entry.section, self._storage, report)
        entry.artifacts, entry.digests, entry.holds = brought.artifacts, brought.digests, brought.holds

    async def _start(self, reason: str) -> None:
        model = self.entry.model
        self.move(State.LOADING, reason)
        await model.load(self.entry.artifacts)
        self.move(State.PROVING, "the first answer is being made")
        if model.proof is None:
            await self._look()
        else:
            await prove(model, model.proof)
            self.move(State.READY, "it answered")
        self._deaths.come_alive()

    async def _look(self) -> None:
        """
        Move the entry to where its model's health says it is, if that is elsewhere.

        Raises:
            EngineDeadError: it will not answer again.
        """
        entry = self.entry
        try:
            await entry.model.check()
        except UnavailableError as error:
            if State.UNAVAILABLE in RULES[entry.state].leaves_to:
                self.move(State.UNAVAILABLE, str(error))
            elif entry.state is State.UNAVAILABLE:
                # It waits for something else by now.
                entry.reason = str(error)
        else:
            if entry.state in {State.PROVING, State.UNAVAILABLE}:
                self.move(State.READY, "it answers")

    async def _die(self, error: Exception) -> None:
        """
        It served, and never will again: start it anew where the config asks for it, until it answers or is given up.
        """
        wants_restart = self.entry.section.recovery == "restart"
        while wants_restart and State.RESTARTING in RULES[self.entry.state].leaves_to:
            self._deaths.count()
            reason = _reason(self.entry, error)
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
        await self._fail(error, _reason(self.entry, error))

    async def _restart(self, reason: str) -> None:
        entry, pause = self.entry, self._deaths.pause_seconds
        entry.restarts += 1
        self.move(State.RESTARTING, f"{reason}; restart {entry.restarts} begins in {pause:.1f} seconds")
        await entry.model.close()
        entry.model = entry.section.build(self._peers)
        await asyncio.sleep(pause)
        async with self._taking_turns():
            await self._start(f"restart {entry.restarts}, because {reason}")

    async def _fail(self, error: Exception, reason: str) -> None:
        self.move(State.FAILED, reason)
        await self.entry.model.close()
        if self.entry.section.recovery == "exit":
            self._end(error.exit_code if isinstance(error, ApplianceError) else 1)


def _reason(entry: Entry, error: Exception) -> str:
    if isinstance(error, ApplianceError):
        return str(error)
    log.error("model.broke", model=entry.section.name, exc_info=error)
    return f"unexpected {type(error).__name__}: {error}"
