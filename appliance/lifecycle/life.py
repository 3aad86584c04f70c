"""
The life of one model: materialize, load, prove, ready, and gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager

import structlog

from appliance.contract import Peers
from appliance.errors import ApplianceError, EngineDeadError, UnavailableError
from appliance.lifecycle import calls
from appliance.lifecycle.bringing import bring, reporter
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
        workers: int,
        storage: Callable[[], StorageSettings],
        turn: asyncio.Lock,
    ) -> None:
        """
        `workers` processes share its limits; `storage` says what holds for a fetch that begins now; `turn` is held
        while an engine starts.
        """
        self.entry = Entry.of(section, peers, workers)
        self._peers = peers
        self._workers = workers
        self._storage = storage
        self._turn = turn
        self._task: asyncio.Task[None] | None = None
        self._has_loaded = asyncio.Event()
        self._is_abandoned = False

    def begin(self) -> None:
        """
        Start to load the model, and then to watch it; returns at once.
        """
        self._task = asyncio.create_task(self._run())

    async def loaded(self) -> None:
        """
        Wait until the load that was begun has ended, well or not.
        """
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
                    await self._fail(str(error))

    async def fetch(self) -> None:
        """
        Bring the bytes before it is the model's turn to load; one without storage has none.
        """
        async with self._failing():
            await self._bring()

    async def load(self) -> None:
        """
        Bring the bytes, unless they are here already, and start the model.
        """
        # One engine after the other: each measures the memory that the ones before it left.
        turn: AbstractAsyncContextManager[object] = (
            self._turn if self.entry.section.has_engine else contextlib.nullcontext()
        )
        async with self._failing(), turn:
            if self.entry.state is State.PENDING:
                await self._bring()
            await self._start()

    async def unload(self, seconds: float, reason: str) -> None:
        """
        Let go of a model that is draining, once its calls are done or `seconds` are over.
        """
        await calls.quiet([self.entry], seconds)
        # It may have died meanwhile.
        if self.entry.state is State.DRAINING:
            self.move(State.UNLOADED, reason)
            async with self._turn:
                await self.entry.model.close()
            self.entry.release(self.entry.section.build(self._peers))

    async def leave(self, seconds: float, reason: str) -> None:
        """
        End, wherever it stands, once the calls under way are done or `seconds` are over; nobody asks it any more.
        """
        if State.DRAINING in RULES[self.entry.state].leaves_to:
            self.move(State.DRAINING, reason)
            await calls.quiet([self.entry], seconds)
        await self.stop(reason)

    async def stop(self, reason: str) -> None:
        """
        End at once.
        """
        await self.halt()
        await self.entry.model.close()
        for hold in self.entry.holds:
            hold.close()
        if State.STOPPED in RULES[self.entry.state].leaves_to:
            self.move(State.STOPPED, reason)

    async def halt(self) -> None:
        """
        Load and watch no more; the thread that brings its bytes ends by itself.
        """
        self._is_abandoned = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def apply(self, section: ModelSection) -> None:
        """
        Go on by a section that differs in hot keys alone.
        """
        self.entry.apply(section, self._workers)

    def move(self, state: State, reason: str) -> None:
        """
        Put the entry where it now stands.
        """
        entry = self.entry
        if state not in RULES[entry.state].leaves_to:
            raise AssertionError(f"{entry.section.name}: {entry.state} does not leave to {state}; this is a bug")
        write = log.error if state is State.FAILED else log.info
        write("model.moved", model=entry.section.name, left=entry.state, state=state, reason=reason)
        entry.enter(state, reason)

    @contextlib.asynccontextmanager
    async def _failing(self) -> AsyncGenerator[None]:
        try:
            yield
        except ApplianceError as error:
            await self._fail(str(error))
        except Exception as error:
            log.exception("model.broke", model=self.entry.section.name)
            await self._fail(f"unexpected {type(error).__name__}: {error}")

    async def _bring(self) -> None:
        entry = self.entry
        if not entry.section.storages:
            return
        self.move(State.FETCHING, "its bytes are being brought")
        entry.progress = Progress()
        report = reporter(entry.section.name, entry.progress, lambda: self._is_abandoned)
        brought = await asyncio.to_thread(bring, entry.section, self._storage(), report)
        entry.artifacts, entry.digests, entry.holds = brought.artifacts, brought.digests, brought.holds

    async def _start(self) -> None:
        entry = self.entry
        self.move(State.LOADING, "the engine is starting" if entry.section.has_engine else "it is starting")
        await entry.model.load(entry.artifacts)
        entry.bound()
        self.move(State.PROVING, "the first answer is being made")
        if entry.model.proof is None:
            await self._look()
        else:
            await prove(entry.model, entry.model.proof)
            self.move(State.READY, "it answered")

    async def _look(self) -> None:
        """
        Move the entry to where its model's health says it is, if that is elsewhere.

        Raises:
            EngineDeadError: it cannot answer any more.
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

    async def _fail(self, reason: str) -> None:
        self.move(State.FAILED, reason)
        await self.entry.model.close()
