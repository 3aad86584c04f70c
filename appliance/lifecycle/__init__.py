"""
Where each model stands in its life, and the one writer of that: materialize, load, prove, ready, drain.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from appliance.access import Access
from appliance.config import Config
from appliance.contract import Call, Reply
from appliance.errors import ApplianceError, EngineDeadError, UnavailableError
from appliance.lifecycle import calls
from appliance.lifecycle.bringing import bring, reporter
from appliance.lifecycle.directory import Directory
from appliance.lifecycle.entry import Entry
from appliance.lifecycle.peers import Peers
from appliance.lifecycle.progress import Progress
from appliance.lifecycle.proof import prove
from appliance.lifecycle.standing import Standing
from appliance.lifecycle.state import RULES, State

__all__ = ["RULES", "Entry", "Lifecycle", "Progress", "Standing", "State"]

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# Well inside the two seconds in which a dead engine must show.
_CHECK_SECONDS = 0.5


class Lifecycle:
    """
    Brings every model of the config to life, watches them, and lets them go.
    """

    def __init__(self, config: Config) -> None:
        self.access = Access(config.server.access)
        self._peers = Peers(lambda name: self.directory.named(name))
        self.entries: tuple[Entry, ...] = tuple(Entry(each, each.build(self._peers)) for each in config.models)
        self.directory = Directory(self.entries, self.access)
        self._storage = config.storage
        self._tasks: list[asyncio.Task[None]] = []
        self._turn = asyncio.Lock()
        self._is_stopping = False

    @property
    def is_live(self) -> bool:
        """
        No model is beyond help.
        """
        return all(RULES[entry.state].is_live for entry in self.entries)

    @property
    def is_ready(self) -> bool:
        """
        Every model of the config answers, but for those that an operator unloaded; there is at least one.
        """
        wanted = [entry for entry in self.entries if entry.state is not State.UNLOADED]
        return bool(wanted) and all(RULES[entry.state].is_ready for entry in wanted)

    @property
    def has_started(self) -> bool:
        """
        Every model has been ready once, or waits for nothing of ours any more.
        """
        return all(entry.has_started for entry in self.entries)

    @property
    def retry_after(self) -> int:
        """
        Seconds after which asking again makes sense.
        """
        return max(RULES[entry.state].retry_after for entry in self.entries)

    def standing(self) -> Standing:
        """
        All of that at this moment.
        """
        models = [entry.describe() for entry in self.entries]
        return Standing(self.is_live, self.is_ready, self.has_started, self.retry_after, models)

    def begin(self) -> None:
        """
        Start the load and the watch as tasks; returns at once.
        """
        self._tasks = [asyncio.create_task(work) for work in (*map(self._load, self.entries), self._watch())]

    def find(self, name: str | None) -> Entry:
        """
        The entry that answers to `name`, for a caller that may use it; see `Directory.find`.

        Raises:
            CallError: there is none for this caller.
        """
        return self.directory.find(name)

    def visible(self) -> Sequence[tuple[Entry, str]]:
        """
        Every entry under each name that the current caller may use it by.
        """
        return self.directory.visible()

    async def answer(self, name: str | None, call: Call) -> Reply:
        """
        Have the named model answer; None means the only one there is.

        Raises:
            ForbiddenError: the caller's key is not for this.
            CallError: unknown model, unsupported operation, not ready, or the call itself is at fault.
            EngineDeadError: the model died over it.
        """
        entry = self.find(name)
        self.access.require_operation(call.operation)
        return await calls.answer(entry, call)

    async def drain(self, seconds: float) -> None:
        """
        Refuse new calls, and wait up to `seconds` for the ones under way.
        """
        self._is_stopping = True
        for entry in self.entries:
            if State.DRAINING in RULES[entry.state].leaves_to:
                self._move(entry, State.DRAINING, "the server is stopping")
        await calls.quiet(self.entries, seconds)

    async def load(self, name: str) -> None:
        """
        Load a model that was unloaded; returns once it is ready, at once where it is already.

        Raises:
            CallError: unknown model, or one that is neither.
            UnavailableError: it did not become ready.
        """
        entry = self.directory.named(name)
        if RULES[entry.state].is_ready:
            return
        entry.require("loaded", State.UNLOADED)
        self._move(entry, State.PENDING, "an operator wants it back")
        await self._own(self._load(entry))
        if not RULES[entry.state].is_ready:
            # An operator asked, who is told why.
            raise UnavailableError(f"The model {name!r} is {entry.state}: {entry.reason}")

    async def unload(self, name: str, seconds: float) -> None:
        """
        Let a model go until it is loaded again, once its calls under way are done or `seconds` are over.

        Raises:
            CallError: unknown model, or one that is not there to be unloaded.
        """
        entry = self.directory.named(name)
        entry.require("unloaded", State.READY, State.UNAVAILABLE)
        self._move(entry, State.DRAINING, "an operator unloads it")
        await self._own(self._unload(entry, seconds))

    async def _unload(self, entry: Entry, seconds: float) -> None:
        await calls.quiet([entry], seconds)
        # It may have died meanwhile.
        if entry.state is State.DRAINING:
            self._move(entry, State.UNLOADED, "an operator unloaded it")
            async with self._turn:
                await entry.model.close()
            entry.release(entry.section.build(self._peers))

    async def _own(self, work: Coroutine[Any, Any, None]) -> None:
        """
        Work that goes on when nobody waits for it any more, and ends with the server.
        """
        task = asyncio.create_task(work)
        self._tasks.append(task)
        await asyncio.shield(task)

    async def stop(self) -> None:
        """
        End the load, what still runs, and every engine.
        """
        self._is_stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(entry.model.close() for entry in self.entries))
        for entry in self.entries:
            if State.STOPPED in RULES[entry.state].leaves_to:
                self._move(entry, State.STOPPED, "the server stopped")

    def _move(self, entry: Entry, state: State, reason: str) -> None:
        if state not in RULES[entry.state].leaves_to:
            raise AssertionError(f"{entry.section.name}: {entry.state} does not leave to {state}; this is a bug")
        write = log.error if state is State.FAILED else log.info
        write("model.moved", model=entry.section.name, left=entry.state, state=state, reason=reason)
        entry.state, entry.since, entry.reason = state, datetime.now(UTC), reason
        entry.has_started |= state in {State.READY, State.UNAVAILABLE}

    async def _load(self, entry: Entry) -> None:
        # One engine after the other: each measures the memory that the ones before it left.
        turn = self._turn if entry.section.has_engine else contextlib.nullcontext()
        try:
            async with turn:
                await self._bring(entry)
        except ApplianceError as error:
            await self._fail(entry, str(error))
        except Exception as error:
            log.exception("model.broke", model=entry.section.name)
            await self._fail(entry, f"unexpected {type(error).__name__}: {error}")

    async def _bring(self, entry: Entry) -> None:
        artifacts: Mapping[str, Path] = {}
        if entry.section.storages:
            self._move(entry, State.FETCHING, "its bytes are being brought")
            entry.progress = Progress()
            report = reporter(entry.section.name, entry.progress, lambda: self._is_stopping)
            brought = await asyncio.to_thread(bring, entry.section, self._storage, report)
            artifacts, entry.digests, entry.holds = brought.artifacts, brought.digests, brought.holds
        self._move(entry, State.LOADING, "the engine is starting" if entry.section.has_engine else "it is starting")
        await entry.model.load(artifacts)
        self._move(entry, State.PROVING, "the first answer is being made")
        if entry.model.proof is None:
            await self._check(entry)
        else:
            await prove(entry.model, entry.model.proof)
            self._move(entry, State.READY, "it answered")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            for entry in self.entries:
                if entry.state in {State.READY, State.UNAVAILABLE, State.DRAINING}:
                    await self._check(entry)

    async def _check(self, entry: Entry) -> None:
        """
        Move the entry to where its model's health says it is, if that is elsewhere.
        """
        try:
            await entry.model.check()
        except EngineDeadError as error:
            await self._fail(entry, str(error))
        except UnavailableError as error:
            if State.UNAVAILABLE in RULES[entry.state].leaves_to:
                self._move(entry, State.UNAVAILABLE, str(error))
            elif entry.state is State.UNAVAILABLE:
                # It waits for something else by now.
                entry.reason = str(error)
        else:
            if entry.state in {State.PROVING, State.UNAVAILABLE}:
                self._move(entry, State.READY, "it answers")

    async def _fail(self, entry: Entry, reason: str) -> None:
        self._move(entry, State.FAILED, reason)
        await entry.model.close()
