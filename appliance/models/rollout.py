"""The replacement of models by those of a new config while the server runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from graphlib import TopologicalSorter

from appliance.config.models import ModelConfig
from appliance.models.manager import ModelManager
from appliance.models.model_runner import ModelRunner
from appliance.models.state import State

_RELOADED = "the config changed; it is loaded again"
_REPLACED = "the config changed; a new version replaced it"
_REMOVED = "the config changed; it was removed"
_NOT_APPLIED = "its config was not applied"

# A model in one of these serves, or will again, and stays until its replacement is ready.
_WORTH_KEEPING = frozenset({State.READY, State.FOLLOWING, State.UNAVAILABLE, State.DRAINING, State.UNLOADED})

_POLL_SECONDS = 0.05


class Rollout:
    """Changes the models of a server to those of a new config.

    All files are downloaded before any model stops. A model without an engine of vLLM starts beside the old one and
    replaces it once it is ready. Two engines would not fit into memory, so an old engine is unloaded first, and loaded
    again if the new one fails.
    """

    def __init__(self, manager: ModelManager, configs: Sequence[ModelConfig], names: Collection[str]) -> None:
        """`configs` are all models of the new config, of which those called `names` are new or changed."""
        self._manager = manager
        self._registry = manager.registry
        self._order = [config.name for config in configs]
        self._incoming = {config.name: manager.new_runner(config) for config in configs if config.name in names}
        self._removed = [runner for runner in self._registry.runners if runner.status.name not in self._order]
        self._unloaded: dict[str, ModelRunner] = {}
        self._has_room = False
        self.failed: dict[str, str] = {}
        """Why models of the new config do not serve, by their names."""

    async def run(self, is_outdated: Callable[[], bool]) -> None:
        """Change the models; once `is_outdated`, because of a still newer config, do not wait for downloads and
        upstreams any more.
        """
        self._registry.incoming = tuple(self._incoming.values())
        await self._fetch(is_outdated)
        if self.failed:
            await asyncio.gather(*map(self._drop, self._registry.incoming))
            return
        for wave in _waves(self._incoming):
            without_engine = [runner for runner in wave if not _has_vllm_engine(runner)]
            await asyncio.gather(*(self._start(runner, is_outdated) for runner in without_engine))
            for runner in wave:
                if _has_vllm_engine(runner):
                    await self._make_room()
                    await self._start(runner, is_outdated)
        for runner in self._removed:
            self._registry.remove(runner)
            self._manager.in_background(self._manager.drain_and_stop(runner, _REMOVED))
        await self._restore_unloaded()
        self._registry.sort_by(self._order)

    async def _fetch(self, is_outdated: Callable[[], bool]) -> None:
        work = asyncio.gather(*(runner.fetch() for runner in self._incoming.values()))
        try:
            while not work.done() and not is_outdated():
                await asyncio.wait([work], timeout=_POLL_SECONDS)
        finally:
            if not work.done():
                work.cancel()
                self.failed.update(dict.fromkeys(self._incoming, "a newer config came during the download"))
        for runner in self._incoming.values():
            self._note_failure(runner)

    async def _start(self, runner: ModelRunner, is_outdated: Callable[[], bool]) -> None:
        old = self._registry.get(runner.status.name)
        if old is not None and old.status.state not in _WORTH_KEEPING:
            self._registry.replace(runner)
            await self._manager.drain_and_stop(old, _REPLACED)
            runner.start()
            await runner.has_loaded.wait()
            return
        runner.start()
        await runner.has_loaded.wait()
        while runner.status.state is State.UNAVAILABLE and not is_outdated():  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
        if not runner.status.rule.is_ready:
            self._note_failure(runner)
            await self._drop(runner)
        elif (old := self._registry.replace(runner)) is not None:
            self._unloaded.pop(runner.status.name, None)
            self._manager.in_background(self._manager.drain_and_stop(old, _REPLACED))

    def _note_failure(self, runner: ModelRunner) -> None:
        if runner.status.state in {State.FAILED, State.UNAVAILABLE}:
            self.failed[runner.status.name] = runner.status.reason

    async def _drop(self, runner: ModelRunner) -> None:
        self._registry.remove(runner)
        await self._manager.drain_and_stop(runner, _NOT_APPLIED)

    async def _make_room(self) -> None:
        """Unload all engines that are replaced or removed, before the first new one loads."""
        if self._has_room:
            return
        self._has_room = True
        removed = [runner for runner in self._removed if _has_vllm_engine(runner)]
        self._removed = [runner for runner in self._removed if runner not in removed]
        for runner in removed:
            self._registry.remove(runner)
        names = [name for name, runner in self._incoming.items() if _has_vllm_engine(runner)]
        replaced = {name: old for name in names if (old := self._registry.get(name)) is not None}
        # An operator may be unloading one.
        while any(old.status.state is State.DRAINING for old in replaced.values()):  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
        self._unloaded = {
            name: old
            for name, old in replaced.items()
            if _has_vllm_engine(old) and State.DRAINING in old.status.rule.next_states
        }
        seconds = self._manager.config.server.drain_seconds
        await asyncio.gather(
            *(self._manager.drain_and_stop(runner, _REMOVED) for runner in removed),
            *(runner.unload(seconds, _RELOADED) for runner in self._unloaded.values()),
        )

    async def _restore_unloaded(self) -> None:
        """Load the old engines again whose replacement failed."""
        for name, runner in self._unloaded.items():
            if name in self.failed and runner.status.state is State.UNLOADED:
                runner.change_state(State.PENDING, "its replacement failed")
                await runner.load()


def _has_vllm_engine(runner: ModelRunner) -> bool:
    return runner.status.config.backend == "vllm"


def _waves(incoming: Mapping[str, ModelRunner]) -> Iterator[Sequence[ModelRunner]]:
    """Yield the models in groups, each after the models that it sends requests to."""
    targets = {
        name: [target for target in runner.status.config.targets if target in incoming]
        for name, runner in incoming.items()
    }
    order = TopologicalSorter(targets)
    order.prepare()
    while order.is_active():
        ready = order.get_ready()
        yield [incoming[name] for name in ready]
        order.done(*ready)
