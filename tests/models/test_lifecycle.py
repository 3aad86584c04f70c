"""How models come to runner, answer, fail and let go, with doubles in the place of engines."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest
from doubles import Double, DoubleConfig, DoubleFactory, RemoteConfig, config

from appliance.core.errors import (
    ArtifactNotFoundError,
    EngineDeadError,
    LoadError,
    RequestError,
    UnavailableError,
    UnknownModelError,
    UnsupportedOperationError,
)
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.models.manager import ModelManager
from appliance.models.restart_policy import RestartPolicy
from appliance.models.state import State

PLAIN = ModelRequest(Operation.COMPLETION, b'{"prompt": "hi"}')
STREAM = ModelRequest(Operation.COMPLETION, b'{"stream": true}')


async def _until(is_so: Callable[[], bool], seconds: float = 3) -> None:
    async with asyncio.timeout(seconds):
        while not is_so():
            await asyncio.sleep(0.01)


def _double(manager: ModelManager, index: int = 0) -> Double:
    return cast("Double", manager.statuses[index].model)


@asynccontextmanager
async def _begun(*configs: DoubleConfig, patience: RestartPolicy = RestartPolicy()) -> AsyncGenerator[ModelManager]:  # noqa: B008 - frozen
    manager = ModelManager(config(*configs), restart_policy=patience, factory=DoubleFactory())
    manager.start()
    try:
        yield manager
    finally:
        await manager.stop()


@asynccontextmanager
async def _ready(*configs: DoubleConfig) -> AsyncGenerator[ModelManager]:
    async with _begun(*configs) as manager:
        for index in range(len(manager.statuses)):
            _double(manager, index).may_load.set()
        await _until(lambda: manager.is_ready)
        yield manager


async def test_a_model_is_ready_only_after_a_real_answer() -> None:
    """Loaded is not ready: an answer to the proof comes first."""
    async with _begun() as manager:
        await _until(lambda: manager.statuses[0].state is State.LOADING)
        _double(manager).answer_fault = RequestError("no")
        _double(manager).may_load.set()
        await _until(lambda: manager.statuses[0].state is State.FAILED)

        assert "the warm-up request was refused: no" in manager.statuses[0].reason


async def test_an_engine_that_dies_over_its_first_answer_is_not_asked_again() -> None:
    """The reason is of a model that cannot be computed, not what callers of one that served are told."""
    async with _begun() as manager:
        _double(manager).answer_fault = EngineDeadError("try again in a moment")
        _double(manager).may_load.set()
        await _until(lambda: manager.statuses[0].state is State.FAILED)

        assert "died during the warm-up request" in manager.statuses[0].reason
        assert "try again" not in manager.statuses[0].reason
        assert not manager.has_started


async def test_fetching_shows_its_progress_and_hands_over_the_artifacts() -> None:
    """A model with storage is fetched first; what was fetched reaches its load."""
    async with _begun(DoubleConfig(name="one", has_storage=True)) as manager:
        await _until(lambda: manager.statuses[0].state is State.LOADING)
        progress = manager.statuses[0].progress

        assert progress is not None
        assert progress.describe()["fetched_bytes"] == 50
        assert progress.describe()["total_bytes"] == 200
        assert progress.describe()["part"] == "model"
        assert set(_double(manager).artifacts) == {"model"}


@pytest.mark.parametrize("fault", [LoadError("too big"), RuntimeError("surprise")], ids=["foreseen", "unforeseen"])
async def test_a_model_that_fails_to_load_takes_no_other_with_it(fault: Exception) -> None:
    """One failed model is named with its reason; the others come to life and answer."""
    async with _begun(DoubleConfig(name="bad"), DoubleConfig(name="good")) as manager:
        _double(manager, 0).load_fault = fault
        for index in (0, 1):
            _double(manager, index).may_load.set()
        await _until(lambda: manager.statuses[1].state is State.READY)
        reply = await manager.handle("good", PLAIN)

        assert reply.body == PLAIN.body
        assert manager.statuses[0].state is State.FAILED
        assert str(fault) in manager.statuses[0].reason
        assert _double(manager, 0).closed == 1
        assert not manager.is_ready
        assert not manager.is_live


async def test_a_fault_of_storage_is_a_failure_with_its_reason() -> None:
    """What storage says is what the probe says."""
    model_config = DoubleConfig(name="one", has_storage=True, fetch_fault=ArtifactNotFoundError("nothing there"))
    async with _begun(model_config) as manager:
        await _until(lambda: manager.statuses[0].state is State.FAILED)

        assert manager.statuses[0].reason == "nothing there"


async def test_models_load_one_after_the_other() -> None:
    """The second waits for the first, so that each measures the memory that is really left."""
    async with _begun(DoubleConfig(name="one"), DoubleConfig(name="two")) as manager:
        await _until(lambda: manager.statuses[0].state is State.LOADING)

        assert manager.statuses[1].state is State.PENDING


async def test_a_call_to_a_model_that_is_not_ready_is_told_to_wait() -> None:
    """503 with a wait, and the state in the message."""
    async with _begun() as manager:
        await _until(lambda: manager.statuses[0].state is State.LOADING)
        with pytest.raises(UnavailableError, match="'one' is loading") as caught:
            await manager.handle("one", PLAIN)

    assert caught.value.retry_after == 5


async def test_the_name_decides_who_answers() -> None:
    """Names and aliases lead to their model; none is enough where there is one, and too little where there are two."""
    async with _ready(DoubleConfig(name="one", aliases=("uno",)), DoubleConfig(name="two")) as manager:
        assert manager.find("uno") is manager.find("one")
        with pytest.raises(UnknownModelError, match="'three' does not exist; the models here are: one, uno, two"):
            manager.find("three")
        with pytest.raises(RequestError, match="must be one of: one, uno, two"):
            manager.find(None)

    async with _ready() as manager:
        assert manager.find(None) is manager.statuses[0]


async def test_an_operation_the_model_lacks_names_those_it_has() -> None:
    """The refusal says what could be asked instead."""
    async with _ready() as manager:
        with pytest.raises(UnsupportedOperationError, match="supports: chat_completion, completion"):
            await manager.handle("one", ModelRequest(Operation.TOKENIZE, b"{}"))


async def test_a_stream_is_running_until_its_last_byte() -> None:
    """The count goes up with the call and down with the end of the stream."""
    async with _ready() as manager:
        reply = await manager.handle("one", STREAM)
        assert manager.statuses[0].running == 1
        _double(manager).may_finish.set()
        assert not isinstance(reply.body, bytes)
        received = b"".join([piece async for piece in reply.body])

        assert received == b"data: 1\n\ndata: [DONE]\n\n"
        assert manager.statuses[0].running == 0
        assert _double(manager).streams_closed == 1


@pytest.mark.parametrize("how", ["closed", "forgotten", "closed before the first byte"])
async def test_a_stream_nobody_reads_any_more_is_ended(how: str) -> None:
    """Closing the reply, or only dropping it, ends the work behind it and its count."""
    async with _ready() as manager:
        reply: ModelResponse | None = await manager.handle("one", STREAM)
        assert reply is not None
        assert not isinstance(reply.body, bytes)
        if how == "closed":
            await anext(reply.body)
        if how != "forgotten":
            await reply.body.aclose()
        reply = None
        gc.collect()

        await _until(lambda: manager.statuses[0].running == 0)
        assert _double(manager).streams_closed == 1


async def test_a_cancelled_call_is_not_counted_any_more() -> None:
    """A caller that leaves while its answer is made ends it."""
    async with _ready() as manager:
        task = asyncio.create_task(manager.handle("one", ModelRequest(Operation.COMPLETION, b'{"wait": 1}')))
        await _until(lambda: manager.statuses[0].running == 1)
        task.cancel()

        await _until(lambda: manager.statuses[0].running == 0)


async def test_a_model_that_dies_is_seen_within_a_second() -> None:
    """FAILED with the reason, its remains closed, liveness gone."""
    async with _ready() as manager:
        _double(manager).is_dead = True
        await _until(lambda: manager.statuses[0].state is State.FAILED, 1)

        assert manager.statuses[0].reason == "the engine died: it was told to"
        assert not manager.is_live
        assert manager.has_started


async def test_a_drain_waits_for_calls_and_refuses_new_ones() -> None:
    """What runs may finish; what comes is told to go elsewhere."""
    async with _ready() as manager:
        reply = await manager.handle("one", STREAM)
        draining = asyncio.create_task(manager.drain(5))
        await _until(lambda: manager.statuses[0].state is State.DRAINING)
        with pytest.raises(UnavailableError, match="draining"):
            await manager.handle("one", PLAIN)
        assert not draining.done()
        _double(manager).may_finish.set()
        assert not isinstance(reply.body, bytes)
        _ = [piece async for piece in reply.body]

        await asyncio.wait_for(draining, 1)


async def test_a_drain_ends_at_its_bound() -> None:
    """A stream that never ends does not hold the process for ever."""
    async with _ready() as manager:
        reply = await manager.handle("one", STREAM)

        await asyncio.wait_for(manager.drain(0.2), 1)
        assert not isinstance(reply.body, bytes)
        await reply.body.aclose()


async def test_stopping_cancels_the_load() -> None:
    """A stop in the middle of a load ends it, closes the model, and every entry is stopped."""
    async with _begun() as manager:
        await _until(lambda: manager.statuses[0].state is State.LOADING)

    assert _double(manager).was_cancelled
    assert _double(manager).closed == 1
    assert manager.statuses[0].state is State.STOPPED


async def test_a_model_whose_upstreams_are_away_waits_alive() -> None:
    """It is not failed and not ready; it is ready when they are back, and not when they leave again."""
    async with _begun(RemoteConfig(name="away")) as manager:
        double, (entry,) = _double(manager), manager.statuses
        double.is_away = True
        double.may_load.set()

        await _until(lambda: entry.state is State.UNAVAILABLE)
        assert (manager.is_live, manager.is_ready, manager.has_started) == (True, False, True)
        assert entry.reason == "nobody answers"
        with pytest.raises(UnavailableError):
            await manager.handle("away", PLAIN)
        double.is_away = False
        await _until(lambda: manager.is_ready)
        double.is_away = True
        await _until(lambda: not manager.is_ready)
        assert manager.is_live


async def test_a_model_that_is_away_can_be_drained() -> None:
    """Stopping does not wait for upstreams."""
    async with _begun(RemoteConfig(name="away")) as manager:
        _double(manager).is_away = True
        _double(manager).may_load.set()
        await _until(lambda: manager.statuses[0].state is State.UNAVAILABLE)

        await manager.drain(1)

        assert manager.statuses[0].state is State.DRAINING


async def test_what_needs_no_engine_waits_for_none() -> None:
    """A proxy after a model that takes minutes to load is ready at once."""
    async with _begun(DoubleConfig(name="slow"), RemoteConfig(name="quick")) as manager:
        _double(manager, 1).may_load.set()

        await _until(lambda: manager.statuses[1].state is State.READY)

        assert manager.statuses[0].state is State.LOADING


async def test_a_model_is_let_go_once_its_calls_are_done_and_comes_back() -> None:
    """Unloaded it is live, refuses calls, holds up nobody's readiness, and is another model once it is loaded again."""
    async with _ready(DoubleConfig(name="one"), DoubleConfig(name="two")) as manager:
        first = _double(manager)
        stream = await manager.handle("one", STREAM)
        leaving = asyncio.create_task(manager.unload("one"))
        await _until(lambda: manager.statuses[0].state is State.DRAINING)
        with pytest.raises(UnavailableError):
            await manager.handle("one", PLAIN)
        was_closed = first.closed
        first.may_finish.set()
        assert not isinstance(stream.body, bytes)
        chunks = [chunk async for chunk in stream.body]
        await leaving

        assert (was_closed, first.closed, chunks[-1]) == (0, 1, b"data: [DONE]\n\n")
        assert (manager.statuses[0].state, manager.is_ready, manager.is_live) == (State.UNLOADED, True, True)
        with pytest.raises(UnavailableError):
            await manager.handle("one", PLAIN)

        _double(manager).may_load.set()
        await manager.load("one")

        assert _double(manager) is not first
        assert (await manager.handle("one", PLAIN)).body == PLAIN.body


async def test_a_server_whose_models_are_all_unloaded_is_not_ready() -> None:
    """Nobody would answer."""
    async with _ready(DoubleConfig(name="one")) as manager:
        await manager.unload("one")

        assert not manager.is_ready
        assert manager.is_live


async def test_a_model_that_cannot_be_loaded_again_says_why() -> None:
    """It has failed, as it would have at the start."""
    async with _ready(DoubleConfig(name="one")) as manager:
        await manager.unload("one")
        _double(manager).load_fault = LoadError("no memory")
        _double(manager).may_load.set()

        with pytest.raises(UnavailableError, match="no memory"):
            await manager.load("one")
        assert manager.statuses[0].state is State.FAILED


async def test_what_is_not_there_is_neither_loaded_nor_unloaded() -> None:
    """A model that loads already is a conflict; one that is ready needs no loading."""
    async with _begun(DoubleConfig(name="one")) as manager:
        for work in (manager.load("one"), manager.unload("one")):
            with pytest.raises(RequestError) as raised:
                await work
            assert raised.value.status == 409
        _double(manager).may_load.set()
        await _until(lambda: manager.is_ready)

        await manager.load("one")

        assert _double(manager).closed == 0


async def test_an_unload_goes_on_when_nobody_waits_for_it() -> None:
    """A client that leaves does not keep a model between two states."""
    async with _ready(DoubleConfig(name="one")) as manager:
        call = asyncio.create_task(manager.handle("one", ModelRequest(Operation.COMPLETION, b"wait")))
        await _until(lambda: manager.statuses[0].running == 1)
        leaving = asyncio.create_task(manager.unload("one"))
        await _until(lambda: manager.statuses[0].state is State.DRAINING)

        leaving.cancel()
        _double(manager).may_finish.set()
        await call

        await _until(lambda: manager.statuses[0].state is State.UNLOADED)


async def test_an_unload_does_not_wait_for_another_models_load() -> None:
    """What it held is free at once, however long the other one takes."""
    async with _begun(DoubleConfig(name="one"), DoubleConfig(name="two")) as manager:
        one, two = manager.statuses
        _double(manager).may_load.set()
        await _until(lambda: one.state is State.READY and two.state is State.LOADING)
        first = _double(manager)

        await asyncio.wait_for(manager.unload("one"), 5)

        assert (one.state, first.closed) == (State.UNLOADED, 1)
        assert two.state is State.LOADING


async def test_an_engine_starts_again_where_memory_was_freed_while_it_started() -> None:
    """vLLM takes it for a fault, once; without that a fault of a first start is the last word."""
    async with _begun(DoubleConfig(name="one"), DoubleConfig(name="two")) as manager:
        one, two = manager.statuses
        _double(manager).may_load.set()
        await _until(lambda: one.state is State.READY and two.state is State.LOADING)
        disturbed = _double(manager, 1)
        disturbed.load_fault = LoadError("Error in memory profiling")
        await manager.unload("one")
        disturbed.may_load.set()
        await _until(lambda: _double(manager, 1) is not disturbed)
        _double(manager, 1).may_load.set()

        await _until(lambda: two.state is State.READY)

        assert disturbed.closed == 1


async def test_a_restart_does_not_wait_for_another_models_download() -> None:
    """A model whose bytes are on their way starts no engine yet."""
    may_fetch = threading.Event()
    slow = DoubleConfig(name="slow", has_storage=True, may_fetch=may_fetch)
    patience = RestartPolicy(first_pause_seconds=0.01)
    async with _begun(DoubleConfig(name="one", on_failure="restart"), slow, patience=patience) as manager:
        one, two = manager.statuses
        _double(manager).may_load.set()
        await _until(lambda: one.state is State.READY and two.state is State.FETCHING)
        first = _double(manager)
        first.is_dead = True
        await _until(lambda: _double(manager) is not first)
        _double(manager).may_load.set()

        await _until(lambda: one.state is State.READY)

        assert two.state is State.FETCHING
        may_fetch.set()
