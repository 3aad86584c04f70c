"""
Where each model stands in its life, and the one writer of that: materialize, load, prove, ready, drain.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import structlog

from appliance.config import Config
from appliance.contract import Call, Reply
from appliance.errors import (
    ApplianceError,
    CallError,
    EngineDeadError,
    UnavailableError,
    UnknownModelError,
)
from appliance.lifecycle import calls
from appliance.lifecycle.entry import Entry
from appliance.lifecycle.peers import Peers
from appliance.lifecycle.progress import Progress
from appliance.lifecycle.proof import prove
from appliance.lifecycle.standing import Standing
from appliance.lifecycle.state import RULES, State
from appliance.models.section import Report
from appliance.storage.holding import hold
from appliance.storage.manifest import artifact_of

__all__ = ["RULES", "Entry", "Lifecycle", "Progress", "Standing", "State"]

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# Well inside the two seconds in which a dead engine must show.
_CHECK_SECONDS = 0.5

# Often enough to see that a long fetch goes on, seldom enough to read the rest.
_TELL_SECONDS = 5.0


class _StoppedError(Exception):
    """
    Ends the thread that materializes: nobody waits for it any more.
    """


class Lifecycle:
    """
    Brings every model of the config to life, watches them, and lets them go.
    """

    def __init__(self, config: Config) -> None:
        peers = Peers(self.find)
        self.entries: tuple[Entry, ...] = tuple(Entry(section, section.build(peers)) for section in config.models)
        self._by_name = {name: entry for entry in self.entries for name in entry.section.names}
        self._storage = config.storage
        self._tasks: list[asyncio.Task[None]] = []
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
        Every model of the config answers; there is always at least one.
        """
        return all(RULES[entry.state].is_ready for entry in self.entries)

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
        self._tasks = [asyncio.create_task(self._load_all()), asyncio.create_task(self._watch())]

    def find(self, name: str | None) -> Entry:
        """
        The entry that answers to `name`; None means the only one there is.

        Raises:
            UnknownModelError: nobody answers to it.
            CallError: None, and there are several.
        """
        if name is None and len(self.entries) == 1:
            return self.entries[0]
        names = ", ".join(self._by_name)
        if name is None:
            raise CallError(f"model is missing; it must be one of: {names}", param="model", code="model_missing")
        if name not in self._by_name:
            raise UnknownModelError(
                f"The model {name!r} does not exist; the models here are: {names}",
                param="model",
                code="model_not_found",
            )
        return self._by_name[name]

    async def answer(self, name: str | None, call: Call) -> Reply:
        """
        Have the named model answer; None means the only one there is.

        Raises:
            CallError: unknown model, unsupported operation, not ready, or the call itself is at fault.
            EngineDeadError: the model died over it.
        """
        return await calls.answer(self.find(name), call)

    async def drain(self, seconds: float) -> None:
        """
        Refuse new calls, and wait up to `seconds` for the ones under way.
        """
        self._is_stopping = True
        for entry in self.entries:
            if State.DRAINING in RULES[entry.state].leaves_to:
                self._move(entry, State.DRAINING, "the server is stopping")
        deadline = time.monotonic() + seconds
        # Polled: the count has many writers' ends and one reader, once in a process's life.
        while any(entry.running for entry in self.entries) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

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

    async def _load_all(self) -> None:
        others = [self._load(entry) for entry in self.entries if not entry.section.has_engine]
        await asyncio.gather(self._load_engines(), *others)

    async def _load_engines(self) -> None:
        # One after the other: an engine measures the memory that the ones before it left.
        for entry in self.entries:
            if entry.section.has_engine:
                await self._load(entry)

    async def _load(self, entry: Entry) -> None:
        try:
            await self._bring(entry)
        except ApplianceError as error:
            await self._fail(entry, str(error))
        except Exception as error:
            log.exception("model.broke", model=entry.section.name)
            await self._fail(entry, f"unexpected {type(error).__name__}: {error}")

    async def _bring(self, entry: Entry) -> None:
        artifacts = {}
        if entry.section.storages:
            self._move(entry, State.FETCHING, "its bytes are being brought")
            materialize = entry.section.materialize
            artifacts = dict(await asyncio.to_thread(materialize, self._storage, self._reporter(entry)))
            # For as long as it is served, nobody prunes it.
            entry.holds = list(filter(None, map(hold, artifacts.values())))
            entry.digests = await asyncio.to_thread(_digests, artifacts)
        self._move(entry, State.LOADING, "the engine is starting" if entry.section.has_engine else "it is starting")
        await entry.model.load(artifacts)
        self._move(entry, State.PROVING, "the first answer is being made")
        if entry.model.proof is None:
            await self._check(entry)
        else:
            await prove(entry.model, entry.model.proof)
            self._move(entry, State.READY, "it answered")

    def _reporter(self, entry: Entry) -> Report:
        told = time.monotonic()
        progress = entry.progress = Progress()

        def report(part: str, fetched: int, total: int | None) -> None:
            if self._is_stopping:
                raise _StoppedError
            nonlocal told
            progress.hear(part, fetched, total)
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                log.info("artifact.fetching", model=entry.section.name, **progress.describe())

        return report

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


def _digests(artifacts: Mapping[str, Path]) -> Mapping[str, str]:
    """
    Of each part that lies in the cache, one digest over all of its files.
    """
    found = {part: artifact_of(path) for part, path in artifacts.items()}
    return {part: each[1].digest for part, each in found.items() if each is not None}
