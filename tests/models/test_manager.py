"""Models load, answer, fail, drain and unload; doubles stand for engines."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest
from doubles import Double, DoubleConfig, DoubleFactory, RemoteConfig, config

from appliance.config.models import AliasConfig, FallbackConfig
from appliance.config.upstreams import RequestRewriteConfig
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
from appliance.models.dispatch import PeerClient
from appliance.models.manager import ModelManager
from appliance.models.restart_policy import RestartPolicy
from appliance.models.state import State

PLAIN = ModelRequest(Operation.COMPLETION, b'{"prompt": "hi"}')
STREAM = ModelRequest(Operation.COMPLETION, b'{"stream": true}')


async def _wait_until(is_true: Callable[[], bool], seconds: float = 3) -> None:
    async with asyncio.timeout(seconds):
        while not is_true():
            await asyncio.sleep(0.01)


def _double(manager: ModelManager, index: int = 0) -> Double:
    return cast("Double", manager.statuses[index].model)


@asynccontextmanager
async def _started(*configs: DoubleConfig, restart_policy: RestartPolicy | None = None) -> AsyncGenerator[ModelManager]:
    manager = ModelManager(config(*configs), restart_policy=restart_policy or RestartPolicy(), factory=DoubleFactory())
    manager.start()
    try:
        yield manager
    finally:
        await manager.stop()


@asynccontextmanager
async def _ready(*configs: DoubleConfig) -> AsyncGenerator[ModelManager]:
    async with _started(*configs) as manager:
        for index in range(len(manager.statuses)):
            _double(manager, index).may_load.set()
        await _wait_until(lambda: manager.is_ready)
        yield manager


async def test_a_model_is_ready_only_after_its_warm_up_request() -> None:
    """A loaded model whose warm-up request is refused fails."""
    async with _started() as manager:
        await _wait_until(lambda: manager.statuses[0].state is State.LOADING)
        _double(manager).answer_fault = RequestError("no")
        _double(manager).may_load.set()
        await _wait_until(lambda: manager.statuses[0].state is State.FAILED)

        assert "the warm-up request was refused: no" in manager.statuses[0].reason


async def test_a_death_during_the_warm_up_request_is_a_failed_load() -> None:
    """Its reason says that the model cannot be computed, and does not suggest to try again."""
    async with _started() as manager:
        _double(manager).answer_fault = EngineDeadError("try again in a moment")
        _double(manager).may_load.set()
        await _wait_until(lambda: manager.statuses[0].state is State.FAILED)

        assert "died during the warm-up request" in manager.statuses[0].reason
        assert "try again" not in manager.statuses[0].reason
        assert not manager.health().has_started


async def test_a_download_reports_its_progress_and_its_files_reach_the_load() -> None:
    """A model with storage is fetched first."""
    async with _started(DoubleConfig(name="one", has_storage=True)) as manager:
        await _wait_until(lambda: manager.statuses[0].state is State.LOADING)
        progress = manager.statuses[0].progress

        assert progress is not None
        assert progress.describe()["fetched_bytes"] == 50
        assert progress.describe()["total_bytes"] == 200
        assert progress.describe()["part"] == "model"
        assert set(_double(manager).artifacts) == {"model"}


@pytest.mark.parametrize("fault", [LoadError("too big"), RuntimeError("surprise")], ids=["foreseen", "unforeseen"])
async def test_a_model_that_fails_to_load_does_not_affect_others(fault: Exception) -> None:
    """The failed one has its reason; the others load and answer."""
    async with _started(DoubleConfig(name="bad"), DoubleConfig(name="good")) as manager:
        _double(manager, 0).load_fault = fault
        for index in (0, 1):
            _double(manager, index).may_load.set()
        await _wait_until(lambda: manager.statuses[1].state is State.READY)
        reply = await manager.handle("good", PLAIN)

        assert reply.body == PLAIN.body
        assert manager.statuses[0].state is State.FAILED
        assert str(fault) in manager.statuses[0].reason
        assert _double(manager, 0).closed == 1
        assert not manager.is_ready
        assert not manager.health().is_live


async def test_an_error_of_storage_is_the_reason_of_the_failure() -> None:
    """The probes show the message of the storage error."""
    model_config = DoubleConfig(name="one", has_storage=True, fetch_fault=ArtifactNotFoundError("nothing there"))
    async with _started(model_config) as manager:
        await _wait_until(lambda: manager.statuses[0].state is State.FAILED)

        assert manager.statuses[0].reason == "nothing there"


async def test_engines_load_one_after_the_other() -> None:
    """The second waits for the first, so that each measures the memory that is left."""
    async with _started(DoubleConfig(name="one"), DoubleConfig(name="two")) as manager:
        await _wait_until(lambda: manager.statuses[0].state is State.LOADING)

        assert manager.statuses[1].state is State.PENDING


async def test_a_request_to_a_model_that_is_not_ready_is_503_with_a_wait() -> None:
    """The message has the state."""
    async with _started() as manager:
        await _wait_until(lambda: manager.statuses[0].state is State.LOADING)
        with pytest.raises(UnavailableError, match="'one' is loading") as caught:
            await manager.handle("one", PLAIN)

    assert caught.value.retry_after == 5


async def test_a_model_is_found_by_its_name_and_its_aliases() -> None:
    """No name is enough if there is one model, and an error if there are two."""
    async with _ready(DoubleConfig(name="one", aliases=("uno",)), DoubleConfig(name="two")) as manager:
        assert manager.find("uno") is manager.find("one")
        with pytest.raises(UnknownModelError, match="'three' does not exist; the models here are: one, uno, two"):
            manager.find("three")
        with pytest.raises(RequestError, match="must be one of: one, uno, two"):
            manager.find(None)

    async with _ready() as manager:
        assert manager.find(None) is manager.statuses[0]


async def test_an_alias_changes_the_requests_of_clients_and_of_models() -> None:
    """An adapter may have an alias as its target."""
    alias = AliasConfig(name="coder", request=RequestRewriteConfig(defaults={"temperature": 0.2}))
    async with _ready(DoubleConfig(name="one", aliases=(alias,))) as manager:
        peers = PeerClient(lambda name: manager.registry.resolve(name).status)
        changed = {"prompt": "hi", "temperature": 0.2}

        for ask in (manager.handle, peers.handle):
            bodies = [(await ask(name, PLAIN)).body for name in ("coder", "one")]
            assert [json.loads(cast("bytes", body)) for body in bodies] == [changed, {"prompt": "hi"}]


async def test_an_alias_moves_at_once() -> None:
    """When the file changes, requests find the other model by it, in whatever order the two are told."""
    async with _ready(DoubleConfig(name="one", aliases=("it",)), DoubleConfig(name="two")) as manager:
        configs = [DoubleConfig(name="one"), DoubleConfig(name="two", aliases=("it",))]
        back = [DoubleConfig(name="one", aliases=("it",)), DoubleConfig(name="two")]
        for owner, order in (("two", configs), ("one", back), ("two", configs[::-1]), ("one", back[::-1])):
            for each in order:
                runner = manager.registry.resolve(each.name)
                runner.apply(each)
                manager.registry.rename(runner)
            assert manager.find("it") is manager.find(owner)
        assert [name for _, name in manager.visible()] == ["one", "it", "two"]


async def test_an_unsupported_operation_names_the_supported_ones() -> None:
    """The error lists them."""
    async with _ready() as manager:
        with pytest.raises(UnsupportedOperationError, match="supports: chat_completion, completion"):
            await manager.handle("one", ModelRequest(Operation.TOKENIZE, b"{}"))


async def test_a_stream_counts_as_running_until_its_last_byte() -> None:
    """The count rises with the request and falls with the end of the stream."""
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
async def test_a_stream_that_is_not_read_any_more_is_closed(how: str) -> None:
    """Closing the response, or dropping it, ends the work behind it and its count."""
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

        await _wait_until(lambda: manager.statuses[0].running == 0)
        assert _double(manager).streams_closed == 1


async def test_a_cancelled_request_is_not_counted_as_running() -> None:
    """A client that leaves ends its request."""
    async with _ready() as manager:
        task = asyncio.create_task(manager.handle("one", ModelRequest(Operation.COMPLETION, b'{"wait": 1}')))
        await _wait_until(lambda: manager.statuses[0].running == 1)
        task.cancel()

        await _wait_until(lambda: manager.statuses[0].running == 0)


async def test_a_dead_model_is_noticed_within_a_second() -> None:
    """It is failed with the reason and closed, and liveness is gone."""
    async with _ready() as manager:
        _double(manager).is_dead = True
        await _wait_until(lambda: manager.statuses[0].state is State.FAILED, 1)

        assert manager.statuses[0].reason == "the engine died: it was told to"
        assert not manager.health().is_live
        assert manager.health().has_started


async def test_a_fallback_answers_for_a_model_that_died() -> None:
    """Its requests, also of adapters, and readiness, not its liveness; of a model that still loads the requests."""
    primary = DoubleConfig(name="primary", fallback=(FallbackConfig(model="reserve"),))
    async with _started(primary, DoubleConfig(name="reserve")) as manager:
        _double(manager, 0).may_load.set()
        _double(manager, 1).may_load.set()
        await _wait_until(lambda: manager.is_ready)
        _double(manager, 0).is_dead = True
        await _wait_until(lambda: manager.statuses[0].state is State.FAILED)
        report = manager.health()
        reply = await manager.handle("primary", PLAIN)
        peers = PeerClient(manager.registry.status_of)
        peers.check("primary")

        assert (await peers.handle("primary", PLAIN)).status == 200
        assert (report.is_ready, report.is_live, reply.status) == (True, False, 200)
        assert report.models[0]["fallback"] == [{"model": "reserve", "ready": True}]
        assert [status.requests.succeeded for status in manager.statuses] == [0, 2]
    async with _started(primary, RemoteConfig(name="reserve")) as manager:
        _double(manager, 1).may_load.set()
        await _wait_until(lambda: manager.statuses[1].state is State.READY)

        assert (await manager.handle("primary", PLAIN)).status == 200
        assert (manager.statuses[0].state, manager.is_ready) == (State.LOADING, False)


async def test_a_drain_waits_for_running_requests_and_refuses_new_ones() -> None:
    """Requests that run may finish; new ones get 503."""
    async with _ready() as manager:
        reply = await manager.handle("one", STREAM)
        draining = asyncio.create_task(manager.drain(60))
        await _wait_until(lambda: manager.statuses[0].state is State.DRAINING)
        with pytest.raises(UnavailableError, match="draining"):
            await manager.handle("one", PLAIN)
        assert not draining.done()
        _double(manager).may_finish.set()
        assert not isinstance(reply.body, bytes)
        _ = [piece async for piece in reply.body]

        await asyncio.wait_for(draining, 10)


async def test_a_drain_ends_at_its_timeout() -> None:
    """A stream that never ends does not keep the process."""
    async with _ready() as manager:
        reply = await manager.handle("one", STREAM)

        await asyncio.wait_for(manager.drain(0.2), 10)
        assert not isinstance(reply.body, bytes)
        await reply.body.aclose()


async def test_a_stop_cancels_the_load() -> None:
    """The model is closed, and its state is stopped."""
    async with _started() as manager:
        await _wait_until(lambda: manager.statuses[0].state is State.LOADING)

    assert _double(manager).was_cancelled
    assert _double(manager).closed == 1
    assert manager.statuses[0].state is State.STOPPED


async def test_a_model_whose_upstreams_are_away_is_live_and_not_ready() -> None:
    """It is ready again when they are back."""
    async with _started(RemoteConfig(name="away")) as manager:
        double, (entry,) = _double(manager), manager.statuses
        double.is_away = True
        double.may_load.set()

        await _wait_until(lambda: entry.state is State.UNAVAILABLE)
        assert (manager.health().is_live, manager.is_ready, manager.health().has_started) == (True, False, True)
        assert entry.reason == "nobody answers"
        with pytest.raises(UnavailableError):
            await manager.handle("away", PLAIN)
        double.is_away = False
        await _wait_until(lambda: manager.is_ready)
        double.is_away = True
        await _wait_until(lambda: not manager.is_ready)
        assert manager.health().is_live


async def test_an_unavailable_model_can_be_drained() -> None:
    """A stop does not wait for upstreams."""
    async with _started(RemoteConfig(name="away")) as manager:
        _double(manager).is_away = True
        _double(manager).may_load.set()
        await _wait_until(lambda: manager.statuses[0].state is State.UNAVAILABLE)

        await manager.drain(1)

        assert manager.statuses[0].state is State.DRAINING


async def test_a_model_without_an_engine_does_not_wait_for_engines() -> None:
    """A proxy after a model that takes minutes to load is ready at once."""
    async with _started(DoubleConfig(name="slow"), RemoteConfig(name="quick")) as manager:
        _double(manager, 1).may_load.set()

        await _wait_until(lambda: manager.statuses[1].state is State.READY)

        assert manager.statuses[0].state is State.LOADING


async def test_a_model_is_unloaded_after_its_requests_and_can_be_loaded_again() -> None:
    """While unloaded it is live, refuses requests, and does not affect readiness."""
    async with _ready(DoubleConfig(name="one"), DoubleConfig(name="two")) as manager:
        first = _double(manager)
        stream = await manager.handle("one", STREAM)
        leaving = asyncio.create_task(manager.unload("one"))
        await _wait_until(lambda: manager.statuses[0].state is State.DRAINING)
        with pytest.raises(UnavailableError):
            await manager.handle("one", PLAIN)
        was_closed = first.closed
        first.may_finish.set()
        assert not isinstance(stream.body, bytes)
        chunks = [chunk async for chunk in stream.body]
        await leaving

        assert (was_closed, first.closed, chunks[-1]) == (0, 1, b"data: [DONE]\n\n")
        assert (manager.statuses[0].state, manager.is_ready, manager.health().is_live) == (State.UNLOADED, True, True)
        with pytest.raises(UnavailableError):
            await manager.handle("one", PLAIN)

        _double(manager).may_load.set()
        await manager.load("one")

        assert _double(manager) is not first
        assert (await manager.handle("one", PLAIN)).body == PLAIN.body


async def test_a_server_whose_models_are_all_unloaded_is_not_ready() -> None:
    """No model would answer."""
    async with _ready(DoubleConfig(name="one")) as manager:
        await manager.unload("one")

        assert not manager.is_ready
        assert manager.health().is_live


async def test_a_load_that_an_operator_asks_for_reports_its_failure() -> None:
    """The model has failed, as at the start of the server."""
    async with _ready(DoubleConfig(name="one")) as manager:
        await manager.unload("one")
        _double(manager).load_fault = LoadError("no memory")
        _double(manager).may_load.set()

        with pytest.raises(UnavailableError, match="no memory"):
            await manager.load("one")
        assert manager.statuses[0].state is State.FAILED


async def test_a_model_that_is_loading_can_be_neither_loaded_nor_unloaded() -> None:
    """Both are 409; loading a ready model does nothing."""
    async with _started(DoubleConfig(name="one")) as manager:
        for work in (manager.load("one"), manager.unload("one")):
            with pytest.raises(RequestError) as raised:
                await work
            assert raised.value.status == 409
        _double(manager).may_load.set()
        await _wait_until(lambda: manager.is_ready)

        await manager.load("one")

        assert _double(manager).closed == 0


async def test_an_unload_continues_if_its_client_leaves() -> None:
    """The model does not stay between two states."""
    async with _ready(DoubleConfig(name="one")) as manager:
        call = asyncio.create_task(manager.handle("one", ModelRequest(Operation.COMPLETION, b"wait")))
        await _wait_until(lambda: manager.statuses[0].running == 1)
        leaving = asyncio.create_task(manager.unload("one"))
        await _wait_until(lambda: manager.statuses[0].state is State.DRAINING)

        leaving.cancel()
        _double(manager).may_finish.set()
        await call

        await _wait_until(lambda: manager.statuses[0].state is State.UNLOADED)


async def test_an_unload_does_not_wait_for_the_load_of_another_model() -> None:
    """Its memory is free at once."""
    async with _started(DoubleConfig(name="one"), DoubleConfig(name="two")) as manager:
        one, two = manager.statuses
        _double(manager).may_load.set()
        await _wait_until(lambda: one.state is State.READY and two.state is State.LOADING)
        first = _double(manager)

        await asyncio.wait_for(manager.unload("one"), 10)

        assert (one.state, first.closed) == (State.UNLOADED, 1)
        assert two.state is State.LOADING


async def test_an_engine_starts_again_if_memory_was_freed_while_it_started() -> None:
    """vLLM reports that as an error; without it, an error of the first start is final."""
    async with _started(DoubleConfig(name="one"), DoubleConfig(name="two")) as manager:
        one, two = manager.statuses
        _double(manager).may_load.set()
        await _wait_until(lambda: one.state is State.READY and two.state is State.LOADING)
        disturbed = _double(manager, 1)
        disturbed.load_fault = LoadError("Error in memory profiling")
        await manager.unload("one")
        disturbed.may_load.set()
        await _wait_until(lambda: _double(manager, 1) is not disturbed)
        _double(manager, 1).may_load.set()

        await _wait_until(lambda: two.state is State.READY)

        assert disturbed.closed == 1


async def test_a_restart_does_not_wait_for_the_download_of_another_model() -> None:
    """A model that is downloading does not hold the turn to start an engine."""
    may_fetch = threading.Event()
    slow = DoubleConfig(name="slow", has_storage=True, may_fetch=may_fetch)
    restart_policy = RestartPolicy(first_pause_seconds=0.01)
    async with _started(DoubleConfig(name="one", on_failure="restart"), slow, restart_policy=restart_policy) as manager:
        one, two = manager.statuses
        _double(manager).may_load.set()
        await _wait_until(lambda: one.state is State.READY and two.state is State.FETCHING)
        first = _double(manager)
        first.is_dead = True
        await _wait_until(lambda: _double(manager) is not first)
        _double(manager).may_load.set()

        await _wait_until(lambda: one.state is State.READY)

        assert two.state is State.FETCHING
        may_fetch.set()
