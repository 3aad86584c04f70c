"""
Where each model stands in its life, and the one writer of that: materialize, load, prove, ready, drain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from appliance.config import Config
from appliance.contract import Call, Reply
from appliance.errors import CallError, UnavailableError, UnknownModelError
from appliance.lifecycle import calls
from appliance.lifecycle.deaths import Patience
from appliance.lifecycle.entry import Entry
from appliance.lifecycle.life import Life
from appliance.lifecycle.peers import Peers
from appliance.lifecycle.progress import Progress
from appliance.lifecycle.standing import Standing
from appliance.lifecycle.state import RULES, State

__all__ = ["RULES", "Entry", "Lifecycle", "Patience", "Progress", "Standing", "State"]


class Lifecycle:
    """
    Brings every model of the config to life, watches them, and lets them go.
    """

    def __init__(self, config: Config, patience: Patience = Patience()) -> None:  # noqa: B008 - frozen
        turn, peers = asyncio.Lock(), Peers(self.find)
        self._lives = tuple(
            Life(section, peers, config.storage, turn, patience, self._end) for section in config.models
        )
        self.entries: tuple[Entry, ...] = tuple(life.entry for life in self._lives)
        self._by_name = {name: life for life in self._lives for name in life.entry.section.names}
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = asyncio.Lock()
        self._has_ended = asyncio.Event()
        self._exit_code = 0
        self.is_stopping = False
        """Readiness is off, and what comes is asked to go elsewhere."""

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
        return not self.is_stopping and bool(wanted) and all(RULES[entry.state].is_ready for entry in wanted)

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
        self._tasks = [asyncio.create_task(life.run()) for life in self._lives]

    async def ended(self) -> int:
        """
        Wait until a model fails whose config wants the process to end then; the exit code to end with.
        """
        await self._has_ended.wait()
        return self._exit_code

    def find(self, name: str | None) -> Entry:
        """
        The entry that answers to `name`; None means the only one there is.

        Raises:
            UnknownModelError: nobody answers to it.
            CallError: None, and there are several.
        """
        return self._find(name).entry

    def _find(self, name: str | None) -> Life:
        if name is None and len(self._lives) == 1:
            return self._lives[0]
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

    async def drain(self, seconds: float, delay: float = 0) -> None:
        """
        Turn readiness off, and wait up to `seconds` for the calls under way.

        New ones are refused at once; with a `delay`, in seconds, they are answered for that long, and as long as others
        are under way.
        """
        self.is_stopping = True
        if delay:
            self._retire(f"the server stops in {delay:g} seconds; calls are still answered", answers=True)
            await asyncio.sleep(delay)
        self._retire("the server is stopping", answers=delay > 0)
        await calls.quiet(self.entries, seconds)

    def _retire(self, reason: str, *, answers: bool) -> None:
        for life in self._lives:
            life.retire(reason, answers=answers)

    async def load(self, name: str) -> None:
        """
        Load a model that was unloaded; returns once it is ready, at once where it is already.

        Raises:
            CallError: unknown model, or one that is neither.
            UnavailableError: it did not become ready.
        """
        life = self._find(name)
        entry = life.entry
        if RULES[entry.state].is_ready:
            return
        entry.require("loaded", State.UNLOADED)
        life.move(State.PENDING, "an operator wants it back")
        await self._own(life.load())
        if not RULES[entry.state].is_ready:
            raise UnavailableError(f"The model {name!r} is {entry.state}: {entry.reason}")

    async def unload(self, name: str, seconds: float) -> None:
        """
        Let a model go until it is loaded again, once its calls under way are done or `seconds` are over.

        Raises:
            CallError: unknown model, or one that is not there to be unloaded.
        """
        life = self._find(name)
        life.entry.require("unloaded", State.READY, State.UNAVAILABLE)
        life.move(State.DRAINING, "an operator unloads it")
        await self._own(life.unload(seconds))

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
        self.is_stopping = True
        for life in self._lives:
            life.abandon()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # The web server's end and the process's both ask for it, and may do so at once.
        async with self._closing:
            await asyncio.gather(*(entry.model.close() for entry in self.entries))
        for life in self._lives:
            if State.STOPPED in RULES[life.entry.state].leaves_to:
                life.move(State.STOPPED, "the server stopped")

    def _end(self, code: int) -> None:
        # The first fault is the one to tell; what follows may follow from it.
        if not self._has_ended.is_set():
            self._exit_code = code
            self._has_ended.set()
