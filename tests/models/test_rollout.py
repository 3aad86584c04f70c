"""Models are replaced by those of a new config; doubles stand for engines."""

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
from appliance.models.factory import OnPartProgress
from appliance.models.manager import ModelManager
from appliance.models.model_runner import ModelRunner
from appliance.models.rollout import Rollout
from appliance.models.state import State

PLAIN = ModelRequest(Operation.COMPLETION, b'{"prompt": "hi"}')
STREAM = ModelRequest(Operation.COMPLETION, b'{"stream": true}')


async def _wait_until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_true():
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
    await _wait_until(lambda: manager.is_ready)
    try:
        yield manager
    finally:
        await manager.stop()


class _Rollout:
    """A rollout that runs, and its new models."""

    def __init__(self, manager: ModelManager, configs: Sequence[ModelConfig], *names: str) -> None:
        self.rollout = Rollout(manager, configs, names)
        self.is_outdated = False
        self.task = asyncio.create_task(self.rollout.run(lambda: self.is_outdated))
        self._manager = manager

    async def new_model(self, name: str = "one") -> Double:
        """The model on its way in."""
        await asyncio.sleep(0)
        found = [runner for runner in self._manager.registry.incoming if runner.status.config.name == name]
        return _double(found[0])

    async def end(self) -> dict[str, str]:
        """What failed."""
        await asyncio.wait_for(self.task, 10)
        return self.rollout.failed


async def test_a_model_without_an_engine_starts_beside_the_old_one() -> None:
    """The old one answers until the new one is ready, finishes its requests and is closed; probes do not change."""
    async with _serving(RemoteConfig(name="one"), RemoteConfig(name="two")) as manager:
        old = _double(manager.registry.get("one"))
        stream = await manager.handle("one", STREAM)
        rollout = _Rollout(manager, [RemoteConfig(name="one", aliases=("uno",)), RemoteConfig(name="two")], "one")
        new = await rollout.new_model()
        before = await manager.handle("one", PLAIN)

        assert before.body == PLAIN.body
        assert manager.is_ready
        with pytest.raises(UnknownModelError):
            manager.find("uno")

        new.may_load.set()
        assert await rollout.end() == {}
        assert _double(manager.registry.get("one")) is new
        assert manager.find("uno").model is new
        assert old.closed == 0

        old.may_finish.set()
        assert b"".join([chunk async for chunk in stream.body]).endswith(b"[DONE]\n\n")  # type: ignore[union-attr]
        await _wait_until(lambda: old.closed == 1)
        assert manager.is_ready
        assert [entry.config.name for entry in manager.statuses] == ["one", "two"]


async def test_the_old_model_stays_if_the_new_one_fails() -> None:
    """The new one is closed and forgotten, its reason is reported, and probes do not fail."""
    async with _serving(RemoteConfig(name="one")) as manager:
        old = _double(manager.registry.get("one"))
        rollout = _Rollout(manager, [RemoteConfig(name="one", aliases=("uno",))], "one")
        new = await rollout.new_model()
        new.load_fault = LoadError("no such class")
        new.may_load.set()

        assert await rollout.end() == {"one": "no such class"}
        assert manager.health().is_live
        assert manager.is_ready
        assert _double(manager.registry.get("one")) is old
        assert old.closed == 0
        assert new.closed > 0
        assert manager.registry.all_runners == manager.registry.runners


async def test_a_new_model_waits_for_its_upstreams_while_the_old_one_serves() -> None:
    """It takes over once they answer; a newer config ends the wait."""
    async with _serving(RemoteConfig(name="one"), RemoteConfig(name="two")) as manager:
        olds = [_double(runner) for runner in manager.registry.runners]
        rollout = _Rollout(manager, [RemoteConfig(name=n, aliases=(n * 2,)) for n in ("one", "two")], "one", "two")
        one, two = await rollout.new_model("one"), await rollout.new_model("two")
        for new in (one, two):
            new.is_away = True
            new.may_load.set()
        await _wait_until(
            lambda: [runner.status.state for runner in manager.registry.incoming] == [State.UNAVAILABLE] * 2
        )

        assert [_double(runner) for runner in manager.registry.runners] == olds
        assert manager.is_ready

        one.is_away = False
        await _wait_until(lambda: _double(manager.registry.get("one")) is one)
        rollout.is_outdated = True
        assert await rollout.end() == {"two": "nobody answers"}
        assert _double(manager.registry.get("two")) is olds[1]


async def test_an_old_engine_is_unloaded_before_the_new_one_loads() -> None:
    """Its requests finish first, and the other models stay ready."""
    async with _serving(DoubleConfig(name="one"), RemoteConfig(name="two")) as manager:
        old = _double(manager.registry.get("one"))
        stream = await manager.handle("one", STREAM)
        rollout = _Rollout(manager, [DoubleConfig(name="one", aliases=("uno",)), RemoteConfig(name="two")], "one")
        await _wait_until(lambda: manager.find("one").state is State.DRAINING)
        new = await rollout.new_model()

        assert manager.registry.incoming[0].status.state is State.PENDING
        old.may_finish.set()
        assert b"".join([chunk async for chunk in stream.body]).endswith(b"[DONE]\n\n")  # type: ignore[union-attr]
        await _wait_until(lambda: manager.registry.incoming[0].status.state is State.LOADING)

        assert old.closed == 1
        assert manager.is_ready
        assert "loaded again" in manager.find("one").reason
        new.may_load.set()
        assert await rollout.end() == {}
        assert _double(manager.registry.get("one")) is new
        assert manager.find("uno").state is State.READY


async def test_a_new_model_is_downloaded_before_the_old_engine_is_unloaded() -> None:
    """A download that fails changes nothing, not even other models."""
    fault = ArtifactNotFoundError("nothing there")
    async with _serving(DoubleConfig(name="one"), RemoteConfig(name="two")) as manager:
        olds = manager.registry.runners
        wanted = [DoubleConfig(name="one", has_storage=True, fetch_fault=fault), RemoteConfig(name="3")]
        rollout = _Rollout(manager, wanted, "one", "3")

        assert await rollout.end() == {"one": "nothing there"}
        assert manager.registry.all_runners == olds
        assert [runner.status.state for runner in olds] == [State.READY] * 2
        assert [_double(runner).closed for runner in olds] == [0, 0]


class _EndlessDownloadConfig(RemoteConfig):
    """Declares a double whose bytes never come."""

    def materialize(self, storage: GlobalStorageConfig, on_progress: OnPartProgress) -> Mapping[str, Path]:
        while True:
            on_progress("model", 1, 2)
            time.sleep(0.01)


async def test_a_newer_config_ends_a_download() -> None:
    """A corrected storage does not wait for the wrong one."""
    async with _serving(RemoteConfig(name="one")) as manager:
        olds = manager.registry.all_runners
        rollout = _Rollout(manager, [_EndlessDownloadConfig(name="one", has_storage=True)], "one")
        await _wait_until(lambda: any(runner.status.progress for runner in manager.registry.incoming))
        rollout.is_outdated = True

        assert await rollout.end() == {"one": "a newer config came during the download"}
        assert manager.registry.all_runners == olds
        assert manager.is_ready


async def test_the_old_engine_is_loaded_again_if_the_new_one_fails() -> None:
    """The last good model serves again, and liveness never failed."""
    async with _serving(DoubleConfig(name="one"), RemoteConfig(name="two")) as manager:
        rollout = _Rollout(manager, [DoubleConfig(name="one", aliases=("uno",)), RemoteConfig(name="two")], "one")
        new = await rollout.new_model()
        new.load_fault = LoadError("out of memory")
        new.may_load.set()
        await _wait_until(lambda: manager.find("one").state is State.LOADING)
        assert manager.health().is_live
        _double(manager.registry.get("one")).may_load.set()

        assert await rollout.end() == {"one": "out of memory"}
        assert manager.is_ready
        assert manager.find("one").config.aliases == ()


async def test_models_are_added_and_removed() -> None:
    """A model that is added does not affect readiness; one that is removed finishes its requests and is unknown."""
    async with _serving(RemoteConfig(name="one"), RemoteConfig(name="two")) as manager:
        gone = _double(manager.registry.get("one"))
        stream = await manager.handle("one", STREAM)
        rollout = _Rollout(manager, [DoubleConfig(name="zero"), RemoteConfig(name="two")], "zero")
        new = await rollout.new_model("zero")

        assert manager.is_ready
        new.may_load.set()
        assert await rollout.end() == {}
        assert [entry.config.name for entry in manager.statuses] == ["zero", "two"]
        with pytest.raises(UnknownModelError):
            manager.find("one")
        gone.may_finish.set()
        assert b"".join([chunk async for chunk in stream.body]).endswith(b"[DONE]\n\n")  # type: ignore[union-attr]
        await _wait_until(lambda: gone.closed == 1)


async def test_an_alias_may_move_to_another_model() -> None:
    """Each request finds one of the two."""
    async with _serving(RemoteConfig(name="one", aliases=("both",)), RemoteConfig(name="two")) as manager:
        wanted = [RemoteConfig(name="one"), RemoteConfig(name="two", aliases=("both",))]
        rollout = _Rollout(manager, wanted, "one", "two")
        (await rollout.new_model("two")).may_load.set()
        await _wait_until(lambda: manager.find("both").config.name == "two")
        (await rollout.new_model("one")).may_load.set()

        assert await rollout.end() == {}
        assert manager.find("both").config.name == "two"


async def test_a_dead_model_is_replaced_at_once() -> None:
    """Liveness returns while the new one loads."""
    async with _serving(RemoteConfig(name="one")) as manager:
        old = _double(manager.registry.get("one"))
        old.is_dead = True
        await _wait_until(lambda: manager.find("one").state is State.FAILED)
        assert not manager.health().is_live
        rollout = _Rollout(manager, [RemoteConfig(name="one", aliases=("uno",))], "one")
        await _wait_until(lambda: manager.health().is_live)
        _double(manager.registry.get("one")).may_load.set()

        assert await rollout.end() == {}
        assert manager.is_ready


async def test_a_model_that_is_loading_is_replaced_at_once() -> None:
    """The old load is cancelled."""
    manager = ModelManager(config(DoubleConfig(name="one")), factory=DoubleFactory())
    manager.start()
    await _wait_until(lambda: manager.find("one").state is State.LOADING)
    old = _double(manager.registry.get("one"))
    rollout = _Rollout(manager, [DoubleConfig(name="one", aliases=("uno",))], "one")
    await _wait_until(lambda: old.was_cancelled)
    await _wait_until(lambda: manager.find("one").state is State.LOADING)
    _double(manager.registry.get("one")).may_load.set()

    assert await rollout.end() == {}
    assert manager.is_ready
    await manager.stop()


async def test_an_unloaded_model_stays_unloaded_unless_its_config_changes() -> None:
    """A change of other models does not load it."""
    async with _serving(RemoteConfig(name="one"), RemoteConfig(name="two")) as manager:
        await manager.unload("one")
        await manager.unload("two")
        rollout = _Rollout(manager, [RemoteConfig(name="one"), RemoteConfig(name="two", aliases=("dos",))], "two")
        (await rollout.new_model("two")).may_load.set()

        assert await rollout.end() == {}
        assert [entry.state for entry in manager.statuses] == [State.UNLOADED, State.READY]


async def test_a_model_starts_after_the_models_that_it_uses() -> None:
    """An adapter that is new finds its new target."""
    async with _serving(RemoteConfig(name="one")) as manager:
        wanted = [RemoteConfig(name="one"), RemoteConfig(name="asker", asks=("base",)), DoubleConfig(name="base")]
        rollout = _Rollout(manager, wanted, "asker", "base")
        base, asker = await rollout.new_model("base"), await rollout.new_model("asker")
        asker.may_load.set()
        await _wait_until(lambda: any(runner.status.state is State.LOADING for runner in manager.registry.incoming))

        assert {runner.status.config.name: runner.status.state for runner in manager.registry.incoming} == {
            "asker": State.PENDING,
            "base": State.LOADING,
        }
        base.may_load.set()
        assert await rollout.end() == {}
        assert manager.find("asker").state is State.READY


async def test_a_stop_during_a_rollout_closes_the_new_models() -> None:
    """Newcomers are closed like everyone."""
    async with _serving(RemoteConfig(name="one")) as manager:
        rollout = _Rollout(manager, [RemoteConfig(name="one", aliases=("uno",))], "one")
        new = await rollout.new_model()
        await _wait_until(lambda: manager.registry.incoming[0].status.state is State.LOADING)
        rollout.task.cancel()
        await asyncio.gather(rollout.task, return_exceptions=True)
        await manager.stop()

        assert new.was_cancelled
        assert new.closed == 1
        assert _double(manager.registry.get("one")).closed == 1


async def test_a_model_that_dies_while_it_is_replaced_is_closed() -> None:
    """The rollout continues."""
    async with _serving(RemoteConfig(name="one")) as manager:
        old = _double(manager.registry.get("one"))
        rollout = _Rollout(manager, [RemoteConfig(name="one", aliases=("uno",))], "one")
        new = await rollout.new_model()
        old.answer_fault, old.is_dead = EngineDeadError("it died"), True
        await _wait_until(lambda: manager.find("one").state is State.FAILED)
        new.may_load.set()

        assert await rollout.end() == {}
        assert manager.health().is_live
        assert manager.is_ready
