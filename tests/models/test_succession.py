"""How the models of a new config take the places of the old ones', with doubles in the place of engines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
from doubles import Double, DoubleConfig, DoubleFactory, RemoteConfig, config

from appliance.config.models import ModelConfig
from appliance.config.server import ServerConfig
from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import ArtifactNotFoundError, EngineDeadError, LoadError, UnknownModelError
from appliance.core.model import ModelRequest, Operation
from appliance.models.factory import OnProgress
from appliance.models.manager import ModelManager
from appliance.models.model_runner import ModelRunner
from appliance.models.rollout import Rollout
from appliance.models.state import State

PLAIN = ModelRequest(Operation.COMPLETION, b'{"prompt": "hi"}')
STREAM = ModelRequest(Operation.COMPLETION, b'{"stream": true}')


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.01)


def _double(runner: ModelRunner | None) -> Double:
    assert runner is not None
    return cast("Double", runner.status.model)


@asynccontextmanager
async def _serving(*configs: ModelConfig, drain_seconds: float = 5) -> AsyncGenerator[ModelManager]:
    manager = ModelManager(config(*configs, server=ServerConfig(drain_seconds=drain_seconds)), factory=DoubleFactory())
    manager.start()
    for runner in manager.registry.runners:
        _double(runner).may_load.set()
    await _until(lambda: manager.is_ready)
    try:
        yield manager
    finally:
        await manager.stop()


class _Begun:
    """A succession under way, and its newcomers."""

    def __init__(self, manager: ModelManager, configs: Sequence[ModelConfig], *names: str) -> None:
        self.succession = Rollout(manager, configs, names)
        self.is_outdated = False
        self.task = asyncio.create_task(self.succession.run(lambda: self.is_outdated))
        self._manager = manager

    async def newcomer(self, name: str = "one") -> Double:
        """The model on its way in."""
        await asyncio.sleep(0)
        found = [runner for runner in self._manager.registry.incoming if runner.status.config.name == name]
        return _double(found[0])

    async def end(self) -> dict[str, str]:
        """What failed."""
        await asyncio.wait_for(self.task, 10)
        return self.succession.failed


async def test_a_model_without_an_engine_comes_up_beside_the_old_one() -> None:
    """The old one answers until the new one is ready, ends what is under way, and is closed; no probe notices."""
    async with _serving(RemoteConfig(name="one"), RemoteConfig(name="two")) as manager:
        old = _double(manager.registry.get("one"))
        stream = await manager.handle("one", STREAM)
        begun = _Begun(manager, [RemoteConfig(name="one", aliases=("uno",)), RemoteConfig(name="two")], "one")
        new = await begun.newcomer()
        before = await manager.handle("one", PLAIN)

        assert before.body == PLAIN.body
        assert manager.is_ready
        with pytest.raises(UnknownModelError):
            manager.find("uno")

        new.may_load.set()
        assert await begun.end() == {}
        assert _double(manager.registry.get("one")) is new
        assert manager.find("uno").model is new
        assert old.closed == 0

        old.may_finish.set()
        assert b"".join([chunk async for chunk in stream.body]).endswith(b"[DONE]\n\n")  # type: ignore[union-attr]
        await _until(lambda: old.closed == 1)
        assert manager.is_ready
        assert [entry.config.name for entry in manager.statuses] == ["one", "two"]


async def test_a_new_model_that_fails_leaves_the_old_one() -> None:
    """It is closed and forgotten, the reason is told, and no probe fails."""
    async with _serving(RemoteConfig(name="one")) as manager:
        old = _double(manager.registry.get("one"))
        begun = _Begun(manager, [RemoteConfig(name="one", aliases=("uno",))], "one")
        new = await begun.newcomer()
        new.load_fault = LoadError("no such class")
        new.may_load.set()

        assert await begun.end() == {"one": "no such class"}
        assert manager.is_live
        assert manager.is_ready
        assert _double(manager.registry.get("one")) is old
        assert old.closed == 0
        assert new.closed > 0
        assert manager.registry.all_runners == manager.registry.runners


async def test_a_new_model_whose_servers_are_away_waits_while_the_old_one_serves() -> None:
    """It takes over once they answer; a newer config ends the wait."""
    async with _serving(RemoteConfig(name="one"), RemoteConfig(name="two")) as manager:
        olds = [_double(runner) for runner in manager.registry.runners]
        begun = _Begun(manager, [RemoteConfig(name=n, aliases=(n * 2,)) for n in ("one", "two")], "one", "two")
        one, two = await begun.newcomer("one"), await begun.newcomer("two")
        for new in (one, two):
            new.is_away = True
            new.may_load.set()
        await _until(lambda: [runner.status.state for runner in manager.registry.incoming] == [State.UNAVAILABLE] * 2)

        assert [_double(runner) for runner in manager.registry.runners] == olds
        assert manager.is_ready

        one.is_away = False
        await _until(lambda: _double(manager.registry.get("one")) is one)
        begun.is_outdated = True
        assert await begun.end() == {"two": "nobody answers"}
        assert _double(manager.registry.get("two")) is olds[1]


async def test_of_two_engines_the_old_one_goes_first() -> None:
    """Its calls end before it is closed, nothing loads before that, and the other models stay ready."""
    async with _serving(DoubleConfig(name="one"), RemoteConfig(name="two")) as manager:
        old = _double(manager.registry.get("one"))
        stream = await manager.handle("one", STREAM)
        begun = _Begun(manager, [DoubleConfig(name="one", aliases=("uno",)), RemoteConfig(name="two")], "one")
        await _until(lambda: manager.find("one").state is State.DRAINING)
        new = await begun.newcomer()

        assert manager.registry.incoming[0].status.state is State.PENDING
        old.may_finish.set()
        assert b"".join([chunk async for chunk in stream.body]).endswith(b"[DONE]\n\n")  # type: ignore[union-attr]
        await _until(lambda: manager.registry.incoming[0].status.state is State.LOADING)

        assert old.closed == 1
        assert manager.is_ready
        assert "loaded again" in manager.find("one").reason
        new.may_load.set()
        assert await begun.end() == {}
        assert _double(manager.registry.get("one")) is new
        assert manager.find("uno").state is State.READY


async def test_bytes_are_here_before_an_engine_goes() -> None:
    """A storage that fails changes nothing at all, not even what could have been changed."""
    fault = ArtifactNotFoundError("nothing there")
    async with _serving(DoubleConfig(name="one"), RemoteConfig(name="two")) as manager:
        olds = manager.registry.runners
        wanted = [DoubleConfig(name="one", has_storage=True, fetch_fault=fault), RemoteConfig(name="3")]
        begun = _Begun(manager, wanted, "one", "3")

        assert await begun.end() == {"one": "nothing there"}
        assert manager.registry.all_runners == olds
        assert [runner.status.state for runner in olds] == [State.READY] * 2
        assert [_double(runner).closed for runner in olds] == [0, 0]


class _Endless(RemoteConfig):
    """Declares a double whose bytes never come."""

    def materialize(self, settings: GlobalStorageConfig, report: OnProgress) -> Mapping[str, Path]:
        while True:
            report("model", 1, 2)
            time.sleep(0.01)


async def test_a_newer_config_ends_a_fetch() -> None:
    """Whoever corrects a storage need not wait for the wrong one."""
    async with _serving(RemoteConfig(name="one")) as manager:
        olds = manager.registry.all_runners
        begun = _Begun(manager, [_Endless(name="one", has_storage=True)], "one")
        await _until(lambda: any(runner.status.progress for runner in manager.registry.incoming))
        begun.is_outdated = True

        assert await begun.end() == {"one": "a newer config came during the download"}
        assert manager.registry.all_runners == olds
        assert manager.is_ready


async def test_an_engine_that_refuses_brings_the_old_one_back() -> None:
    """The last good model serves again, and liveness never failed."""
    async with _serving(DoubleConfig(name="one"), RemoteConfig(name="two")) as manager:
        begun = _Begun(manager, [DoubleConfig(name="one", aliases=("uno",)), RemoteConfig(name="two")], "one")
        new = await begun.newcomer()
        new.load_fault = LoadError("out of memory")
        new.may_load.set()
        await _until(lambda: manager.find("one").state is State.LOADING)
        assert manager.is_live
        _double(manager.registry.get("one")).may_load.set()

        assert await begun.end() == {"one": "out of memory"}
        assert manager.is_ready
        assert manager.find("one").config.aliases == ()


async def test_models_are_added_and_removed() -> None:
    """One that comes holds up nobody's readiness; one that goes ends its calls, and is unknown from then on."""
    async with _serving(RemoteConfig(name="one"), RemoteConfig(name="two")) as manager:
        gone = _double(manager.registry.get("one"))
        stream = await manager.handle("one", STREAM)
        begun = _Begun(manager, [DoubleConfig(name="zero"), RemoteConfig(name="two")], "zero")
        new = await begun.newcomer("zero")

        assert manager.is_ready
        new.may_load.set()
        assert await begun.end() == {}
        assert [entry.config.name for entry in manager.statuses] == ["zero", "two"]
        with pytest.raises(UnknownModelError):
            manager.find("one")
        gone.may_finish.set()
        assert b"".join([chunk async for chunk in stream.body]).endswith(b"[DONE]\n\n")  # type: ignore[union-attr]
        await _until(lambda: gone.closed == 1)


async def test_a_name_may_move_to_another_model() -> None:
    """Each call under it finds one of the two."""
    async with _serving(RemoteConfig(name="one", aliases=("both",)), RemoteConfig(name="two")) as manager:
        wanted = [RemoteConfig(name="one"), RemoteConfig(name="two", aliases=("both",))]
        begun = _Begun(manager, wanted, "one", "two")
        (await begun.newcomer("two")).may_load.set()
        await _until(lambda: manager.find("both").config.name == "two")
        (await begun.newcomer("one")).may_load.set()

        assert await begun.end() == {}
        assert manager.find("both").config.name == "two"


async def test_a_dead_model_is_replaced_at_once() -> None:
    """There is nothing to lose, so liveness comes back while the new one loads."""
    async with _serving(RemoteConfig(name="one")) as manager:
        old = _double(manager.registry.get("one"))
        old.is_dead = True
        await _until(lambda: manager.find("one").state is State.FAILED)
        assert not manager.is_live
        begun = _Begun(manager, [RemoteConfig(name="one", aliases=("uno",))], "one")
        await _until(lambda: manager.is_live)
        _double(manager.registry.get("one")).may_load.set()

        assert await begun.end() == {}
        assert manager.is_ready


async def test_a_model_that_still_loads_is_replaced_at_once() -> None:
    """Nobody waits for what the config no longer wants."""
    manager = ModelManager(config(DoubleConfig(name="one")), factory=DoubleFactory())
    manager.start()
    await _until(lambda: manager.find("one").state is State.LOADING)
    old = _double(manager.registry.get("one"))
    begun = _Begun(manager, [DoubleConfig(name="one", aliases=("uno",))], "one")
    await _until(lambda: old.was_cancelled)
    await _until(lambda: manager.find("one").state is State.LOADING)
    _double(manager.registry.get("one")).may_load.set()

    assert await begun.end() == {}
    assert manager.is_ready
    await manager.stop()


async def test_an_unloaded_model_stays_so_unless_its_section_changed() -> None:
    """What an operator unloaded is loaded by a new section, and by nothing else."""
    async with _serving(RemoteConfig(name="one"), RemoteConfig(name="two")) as manager:
        await manager.unload("one")
        await manager.unload("two")
        begun = _Begun(manager, [RemoteConfig(name="one"), RemoteConfig(name="two", aliases=("dos",))], "two")
        (await begun.newcomer("two")).may_load.set()

        assert await begun.end() == {}
        assert [entry.state for entry in manager.statuses] == [State.UNLOADED, State.READY]


async def test_who_asks_another_model_comes_after_it() -> None:
    """A newcomer finds the newcomer that it asks."""
    async with _serving(RemoteConfig(name="one")) as manager:
        wanted = [RemoteConfig(name="one"), RemoteConfig(name="asker", asks=("base",)), DoubleConfig(name="base")]
        begun = _Begun(manager, wanted, "asker", "base")
        base, asker = await begun.newcomer("base"), await begun.newcomer("asker")
        asker.may_load.set()
        await _until(lambda: any(runner.status.state is State.LOADING for runner in manager.registry.incoming))

        assert {runner.status.config.name: runner.status.state for runner in manager.registry.incoming} == {
            "asker": State.PENDING,
            "base": State.LOADING,
        }
        base.may_load.set()
        assert await begun.end() == {}
        assert manager.find("asker").state is State.READY


async def test_the_server_may_stop_in_the_middle() -> None:
    """Newcomers are closed like everyone."""
    async with _serving(RemoteConfig(name="one")) as manager:
        begun = _Begun(manager, [RemoteConfig(name="one", aliases=("uno",))], "one")
        new = await begun.newcomer()
        await _until(lambda: manager.registry.incoming[0].status.state is State.LOADING)
        begun.task.cancel()
        await asyncio.gather(begun.task, return_exceptions=True)
        await manager.stop()

        assert new.was_cancelled
        assert new.closed == 1
        assert _double(manager.registry.get("one")).closed == 1


async def test_a_model_that_dies_while_it_is_replaced_harms_nobody() -> None:
    """It is closed all the same."""
    async with _serving(RemoteConfig(name="one")) as manager:
        old = _double(manager.registry.get("one"))
        begun = _Begun(manager, [RemoteConfig(name="one", aliases=("uno",))], "one")
        new = await begun.newcomer()
        old.answer_fault, old.is_dead = EngineDeadError("it died"), True
        await _until(lambda: manager.find("one").state is State.FAILED)
        new.may_load.set()

        assert await begun.end() == {}
        assert manager.is_live
        assert manager.is_ready
