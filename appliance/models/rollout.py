"""The models of a new config, in the places of those of the old one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from graphlib import TopologicalSorter

from appliance.config.models import ModelConfig
from appliance.models.manager import ModelManager
from appliance.models.model_runner import ModelRunner
from appliance.models.state import RULES, State

_ANEW = "the config changed, and it is brought anew"
_REPLACED = "the config changed, and another took its place"
_REMOVED = "the config has it no more"

# Who serves, or will again: as long as nothing better is ready, it stays.
_WORTHY = frozenset({State.READY, State.FOLLOWING, State.UNAVAILABLE, State.DRAINING, State.UNLOADED})

_POLL_SECONDS = 0.05


class Rollout:
    """One change of models.

    All bytes are brought before anybody goes. What needs no engine of vLLM's comes up beside the old one and takes its
    place once it is ready. Two engines would not fit into memory: the old one goes first, and is brought back where the
    new one fails.
    """

    def __init__(self, manager: ModelManager, configs: Sequence[ModelConfig], names: Collection[str]) -> None:
        """
        `sections` are all models of the new config, of which those called `names` are new or others than they were.
        """
        self._manager = manager
        self._roster = manager.roster
        self._order = [config.name for config in configs]
        self._coming = {config.name: manager.life(config) for config in configs if config.name in names}
        self._gone = [life for life in self._roster.lives if life.entry.config.name not in self._order]
        self._emptied: dict[str, ModelRunner] = {}
        self._has_room = False
        self.failed: dict[str, str] = {}
        """Why models of the new config are not there, by their names."""

    async def carry_out(self, is_outdated: Callable[[], bool]) -> None:
        """
        Change the models; `is_outdated` says that a still newer config makes it vain to wait for bytes, or for servers
        elsewhere.
        """
        self._roster.coming = tuple(self._coming.values())
        await self._fetch(is_outdated)
        if self.failed:
            await asyncio.gather(*map(self._drop, self._roster.coming))
            return
        for wave in _waves(self._coming):
            light = [life for life in wave if not _is_heavy(life)]
            await asyncio.gather(*(self._bring(life, is_outdated) for life in light))
            for life in wave:
                if _is_heavy(life):
                    await self._make_room()
                    await self._bring(life, is_outdated)
        for life in self._gone:
            self._roster.remove(life)
            self._manager.let_go(life, _REMOVED)
        await self._bring_back()
        self._roster.arrange(self._order)

    async def _fetch(self, is_outdated: Callable[[], bool]) -> None:
        work = asyncio.gather(*(life.fetch() for life in self._coming.values()))
        try:
            while not work.done() and not is_outdated():
                await asyncio.wait([work], timeout=_POLL_SECONDS)
        finally:
            if not work.done():
                work.cancel()
                self.failed = dict.fromkeys(self._coming, "a newer config came before its bytes")
        for life in self._coming.values():
            self._note(life)

    async def _bring(self, life: ModelRunner, is_outdated: Callable[[], bool]) -> None:
        old = self._roster.get(life.entry.config.name)
        if old is not None and old.entry.state not in _WORTHY:
            # It never came up, or is dead: as if the file had been this one from the start.
            self._roster.put(life)
            await self._manager.leave(old, _REPLACED)
            life.begin()
            await life.loaded()
            return
        life.begin()
        await life.loaded()
        while life.entry.state is State.UNAVAILABLE and not is_outdated():  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
        if not RULES[life.entry.state].is_ready:
            self._note(life)
            await self._drop(life)
        elif (old := self._roster.put(life)) is not None:
            self._emptied.pop(life.entry.config.name, None)
            self._manager.let_go(old, _REPLACED)

    def _note(self, life: ModelRunner) -> None:
        if life.entry.state in {State.FAILED, State.UNAVAILABLE}:
            self.failed[life.entry.config.name] = life.entry.reason

    async def _drop(self, life: ModelRunner) -> None:
        self._roster.remove(life)
        await self._manager.leave(life, "the config that wanted it is not applied")

    async def _make_room(self) -> None:
        """Have the engines go that are to be replaced or are wanted no more, all before the first new one loads."""
        if self._has_room:
            return
        self._has_room = True
        gone = [life for life in self._gone if _is_heavy(life)]
        self._gone = [life for life in self._gone if life not in gone]
        for life in gone:
            self._roster.remove(life)
        olds = {name: self._roster.get(name) for name, life in self._coming.items() if _is_heavy(life)}
        # An operator may be unloading one.
        while any(old is not None and old.entry.state is State.DRAINING for old in olds.values()):  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
        self._emptied = {
            name: old
            for name, old in olds.items()
            if old is not None and _is_heavy(old) and State.DRAINING in RULES[old.entry.state].leaves_to
        }
        await asyncio.gather(
            *(self._manager.leave(life, _REMOVED) for life in gone),
            *(self._manager.empty(life, _ANEW) for life in self._emptied.values()),
        )

    async def _bring_back(self) -> None:
        """Where a new engine failed, the old one serves again."""
        for name, life in self._emptied.items():
            if name in self.failed and life.entry.state is State.UNLOADED:
                life.move(State.PENDING, "what was to replace it failed")
                await life.load()


def _is_heavy(life: ModelRunner) -> bool:
    return life.entry.config.computer == "vllm"


def _waves(coming: Mapping[str, ModelRunner]) -> Iterator[Sequence[ModelRunner]]:
    """Who asks another model comes after it."""
    asks = {name: [each for each in life.entry.config.targets if each in coming] for name, life in coming.items()}
    order = TopologicalSorter(asks)
    order.prepare()
    while order.is_active():
        ready = order.get_ready()
        yield [coming[name] for name in ready]
        order.done(*ready)
