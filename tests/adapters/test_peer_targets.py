"""An adapter and its target in one file: who waits for whom, from the first answer to the last."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from doubles import Double, DoubleConfig, DoubleFactory, config

from appliance.config.models import AdapterConfig
from appliance.core.errors import LoadError, RequestError, UnavailableError, UnsupportedOperationError
from appliance.core.model import Model, ModelRequest, ModelResponse, Operation, Peers
from appliance.models.manager import ModelManager
from appliance.models.state import State

CHAT = ModelRequest(Operation.CHAT_COMPLETION, b'{"messages": [{"role": "user", "content": "Hi"}]}')
STREAM = ModelRequest(Operation.CHAT_COMPLETION, b'{"messages": [{"role": "user", "content": "Hi"}], "stream": true}')


class Completer(Double):
    """Completes with what it was asked, and counts tokens."""

    operations = frozenset({Operation.COMPLETION, Operation.TOKENIZE})

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[str, Any]] = []
        self.refusal: RequestError | None = None
        """What it says to all but its own proof."""
        self.usage: dict[str, int] | None = None

    async def handle(self, call: ModelRequest) -> ModelResponse:
        """As a double does, in the shape of a completion."""
        if self.refusal and call != self.warmup_request:
            raise self.refusal
        reply = await super().handle(call)
        if call.operation is Operation.TOKENIZE:
            return ModelResponse(b'{"count": 3, "max_model_len": 10}')
        if not isinstance(reply.body, bytes):
            return ModelResponse(self._completion(reply.body), media_type="text/event-stream")
        self.asked.append(json.loads(call.body))
        choice = {"index": 0, "text": "Hello", "finish_reason": "stop"}
        return ModelResponse(
            json.dumps({"id": "cmpl-1", "created": 1, "choices": [choice], "usage": self.usage}).encode()
        )

    async def _completion(self, stream: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        async for _ in stream:
            choice = {"index": 0, "text": "x", "finish_reason": "stop"}
            yield f"data: {json.dumps({'id': 'c', 'created': 1, 'choices': [choice]})}\n\n".encode()


class CompleterConfig(DoubleConfig):
    """Declares it."""

    def build(self, peers: Peers) -> Model:
        return Completer()


def _adapter(name: str = "chat", target: str = "base", **fields: Any) -> AdapterConfig:
    protocol = {"kind": "completions", "chat_template": "{{ messages[0].content }}", **fields}
    return AdapterConfig.model_validate({"name": name, "class": "adapter", "target": target, "protocol": protocol})


async def _until(is_so: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not is_so():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def _started(*configs: Any) -> AsyncGenerator[tuple[ModelManager, Completer]]:
    manager = ModelManager(config(*(configs or (_adapter(), CompleterConfig(name="base")))), factory=DoubleFactory())
    manager.start()
    try:
        yield manager, cast("Completer", manager.find("base").model)
    finally:
        await manager.stop()


@asynccontextmanager
async def _ready(*configs: Any) -> AsyncGenerator[tuple[ModelManager, Completer]]:
    async with _started(*configs) as (manager, target):
        target.may_load.set()
        await _until(lambda: manager.is_ready)
        target.asked.clear()
        yield manager, target


async def test_messages_and_their_tokens_come_from_the_target() -> None:
    """A completion of one token tells the count; a target without usage tells none."""
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}).encode()
    async with _ready() as (manager, target):
        message = await manager.handle("chat", ModelRequest(Operation.MESSAGE, body))
        with pytest.raises(UnsupportedOperationError, match="does not say how many tokens"):
            await manager.handle("chat", ModelRequest(Operation.COUNT_TOKENS, body))
        target.usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        count = await manager.handle("chat", ModelRequest(Operation.COUNT_TOKENS, body))

        assert json.loads(await message.read())["content"] == [{"type": "text", "text": "Hello"}]
        assert await count.read() == b'{"input_tokens":3}'
        assert [asked["max_tokens"] for asked in target.asked] == [5, 1, 1]


async def test_an_adapter_is_ready_only_when_its_target_is() -> None:
    """Whatever the order in the file: until then the probe says what it waits for, and calls are told to come back."""
    async with _started() as (manager, target):
        chat = manager.find("chat")
        await _until(lambda: chat.state is State.UNAVAILABLE and "its target 'base' is loading" in chat.reason)
        with pytest.raises(UnavailableError, match="its target 'base' is loading"):
            await manager.handle("chat", CHAT)
        assert manager.health().is_live

        target.may_load.set()
        await _until(lambda: chat.state is State.READY)

        assert manager.find("base").state is State.READY


async def test_an_adapter_is_ready_only_after_a_response() -> None:
    """A target that answers nonsense is told with its reason, and asked again."""
    async with _started() as (manager, target):
        chat, target.refusal = manager.find("chat"), RequestError("no chat today")
        target.may_load.set()
        await _until(lambda: "no chat today" in chat.reason)

        assert chat.state is State.UNAVAILABLE

        target.refusal = None
        await _until(lambda: chat.state is State.READY)


async def test_a_failed_target_fails_its_adapter() -> None:
    """The reason names the target."""
    async with _ready() as (manager, target):
        target.is_dead = True
        await _until(lambda: manager.find("chat").state is State.FAILED)

        assert "its target 'base' is failed" in manager.find("chat").reason


async def test_an_adapter_names_a_target_that_cannot_load() -> None:
    """Both are failed; what the target's error says is for operators, and stays with the target."""
    async with _started() as (manager, target):
        target.load_fault = LoadError("too big")
        target.may_load.set()
        await _until(lambda: manager.find("chat").state is State.FAILED)

        assert manager.find("base").reason == "too big"
        assert manager.find("chat").reason == "its target 'base' is failed: see the log"


async def test_an_adapter_of_an_unavailable_target_is_unavailable() -> None:
    """Not failed: it comes back when the target does."""
    async with _ready() as (manager, target):
        target.is_away = True
        await _until(lambda: manager.find("chat").state is State.UNAVAILABLE)
        target.is_away = False
        await _until(lambda: manager.is_ready)

        assert manager.health().is_live


async def test_a_target_without_completions_fails_to_load() -> None:
    """The class could not tell; the model can."""

    class Silent(DoubleConfig):
        def build(self, peers: Peers) -> Model:
            made = Double()
            made.operations = frozenset({Operation.EMBEDDING})
            return made

    manager = ModelManager(config(_adapter(), Silent(name="base")), factory=DoubleFactory())
    manager.start()
    await _until(lambda: manager.find("chat").state is State.FAILED)
    await manager.stop()

    assert manager.find("chat").reason == "its target 'base' does not complete prompts; name one that does"


async def test_a_request_has_the_name_of_the_target_and_the_rest_of_its_context() -> None:
    """
    What the prompt leaves of the context is the limit where nobody names one; no second beginning is put before it.
    """
    async with _ready() as (manager, target):
        reply = await manager.handle("chat", CHAT)

        assert json.loads(cast("bytes", reply.body))["choices"][0]["message"]["content"] == "Hello"
        assert target.asked == [{"model": "base", "prompt": "Hi", "max_tokens": 7, "add_special_tokens": False}]


class Stranger(Completer):
    """Behind a proxy: it seems to have every operation, and refuses the one it lacks."""

    async def handle(self, call: ModelRequest) -> ModelResponse:
        """No counts, and whole answers as streams of bytes."""
        if call.operation is Operation.TOKENIZE:
            raise RequestError("no such route", status=404)
        reply = await super().handle(call)
        return reply if call == self.warmup_request else ModelResponse(_bytes(cast("bytes", reply.body)))


async def _bytes(body: bytes) -> AsyncGenerator[bytes]:
    yield body[:5]
    yield body[5:]


class StrangerConfig(DoubleConfig):
    """Declares it."""

    def build(self, peers: Peers) -> Model:
        return Stranger()


async def test_an_upstream_that_cannot_count_tokens_gets_the_default_limit() -> None:
    """Where nobody counts, the usual limit holds, and what it would refuse is taken out by the config."""
    adapter = _adapter(defaults={"add_special_tokens": None})
    async with _ready(adapter, StrangerConfig(name="base")) as (manager, target):
        reply = await manager.handle("chat", CHAT)

        assert json.loads(cast("bytes", reply.body))["choices"][0]["message"]["content"] == "Hello"
        assert target.asked == [{"model": "base", "prompt": "Hi", "max_tokens": 1024}]


async def test_completions_are_forwarded_unchanged() -> None:
    """Nothing is decided for the client there: neither a limit nor the special tokens."""
    async with _ready() as (manager, target):
        await manager.handle("chat", ModelRequest(Operation.COMPLETION, b'{"prompt": "Hi", "mine": null}'))

        assert target.asked == [{"model": "base", "prompt": "Hi", "mine": None}]


async def test_an_adapter_may_be_the_target_of_another() -> None:
    """An adapter's target may be an adapter, and an alias."""
    base = CompleterConfig(name="base", aliases=("ground",))
    async with _ready(_adapter("top", "middle"), _adapter("middle", "ground"), base) as (manager, _):
        reply = await manager.handle("top", CHAT)

        assert json.loads(cast("bytes", reply.body))["model"] == "top"


async def test_a_drain_waits_for_adapter_and_target() -> None:
    """A stream under way counts at the adapter and at its target, and what it still asks is answered."""
    async with _ready() as (manager, target):
        reply = await manager.handle("chat", STREAM)
        running = [entry.running for entry in manager.statuses]
        drain = asyncio.create_task(manager.drain(5))
        await _until(lambda: manager.find("base").state is State.DRAINING)
        inner = await manager.find("chat").model.handle(CHAT)
        is_waiting = not drain.done()
        target.may_finish.set()
        rest = [chunk async for chunk in cast("AsyncGenerator[bytes]", reply.body)]
        await drain

        assert running == [1, 1]
        assert is_waiting
        assert json.loads(cast("bytes", inner.body))["choices"]
        assert rest[-1] == b"data: [DONE]\n\n"
        assert [entry.running for entry in manager.statuses] == [0, 0]


async def test_an_abandoned_stream_is_cancelled_at_the_target() -> None:
    """Closing the adapter's stream closes the target's."""
    async with _ready() as (manager, target):
        reply = await manager.handle("chat", STREAM)
        stream = cast("AsyncGenerator[bytes]", reply.body)
        await anext(stream)
        await stream.aclose()

        await _until(lambda: target.streams_closed == 1)
        assert [entry.running for entry in manager.statuses] == [0, 0]
