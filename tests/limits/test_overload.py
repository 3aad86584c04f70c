"""Requests to a model that has enough to do, over its routes."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from doubles import Double, DoubleConfig, DoubleFactory, config
from httpx import ASGITransport, AsyncClient, Response

from appliance.config.limits import KeyLimitsConfig, LimitsConfig, SloConfig
from appliance.config.server import ServerConfig
from appliance.core.errors import RateLimitedError, RequestError
from appliance.core.model import Model, ModelRequest, ModelResponse, Operation, Peers
from appliance.core.request_context import RequestContext, current_context, use_context
from appliance.models.manager import ModelManager
from appliance.models.model_status import ModelStatus
from appliance.server import create_app

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


class Engine(Double):
    """Computes calls until the test says that they are done, and notes whose prompt it has read."""

    operations = Double.operations | {Operation.MESSAGE, Operation.TOKENIZE}

    def __init__(self) -> None:
        super().__init__()
        self.read: list[bytes] = []
        self.aborted = 0
        self.answers_when_cancelled = False
        self.tokenizes_at_once = True
        self.records: list[RequestContext | None] = []
        self._places: list[asyncio.Future[None]] = []

    async def handle(self, call: ModelRequest) -> ModelResponse:
        """Waits for `finish`; a stream gives one event at once."""
        if call == self.warmup_request or (call.operation is Operation.TOKENIZE and self.tokenizes_at_once):
            return ModelResponse(call.body)
        self.read.append(call.body)
        self.records.append(current_context())
        if call.is_streamed:
            return ModelResponse(self._events(), media_type="text/event-stream")
        await self._computed()
        return ModelResponse(call.body)

    def finish(self) -> None:
        """What is under way is done."""
        for place in self._places:
            if not place.done():
                place.set_result(None)
        self._places.clear()

    async def _events(self) -> AsyncGenerator[bytes]:
        yield b'data: {"first": 1}\n\n'
        await self._computed()
        yield b"data: [DONE]\n\n"

    async def _computed(self) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._places.append(place)
        try:
            await place
        except asyncio.CancelledError as error:
            self.aborted += 1
            if self.answers_when_cancelled:
                raise RequestError("Client disconnected") from error
            raise


class EngineConfig(DoubleConfig):
    """Declares one."""

    def build(self, peers: Peers) -> Model:
        return Engine()


class Client(AsyncClient):
    """Talks to an application of one engine, in this event loop."""

    def __init__(self, server: ServerConfig, **model_config: Any) -> None:
        app = create_app(config(EngineConfig(name="one", **model_config), server=server), factory=DoubleFactory())
        self.manager: ModelManager = app.state.manager
        super().__init__(transport=ASGITransport(cast("Any", app)), base_url="http://appliance", timeout=60)

    @property
    def status(self) -> ModelStatus:
        """The only model."""
        return self.manager.statuses[0]

    @property
    def engine(self) -> Engine:
        """What computes it."""
        return cast("Engine", self.status.model)

    def ask(self, content: Any = "", path: str = COMPLETION, **others: Any) -> asyncio.Task[Response]:
        """A request that is on its way."""
        return asyncio.create_task(self.post(path, json={"model": "one", "prompt": content, **others}))


@asynccontextmanager
async def serving(server: ServerConfig | None = None, **model_config: Any) -> AsyncGenerator[Client]:
    """A client of an engine that is ready, with these limits."""
    client = Client(server or ServerConfig(), **model_config)
    client.engine.may_load.set()
    client.manager.start()
    await wait_until(lambda: client.manager.is_ready)
    async with client:
        yield client
    await client.manager.stop()


async def wait_until(is_true: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(60):
        while not is_true():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("times", [1.5, 3, 10])
async def test_overload_is_refused_before_it_costs_anything(times: float) -> None:
    """Four places and four that may wait, and more come in each round than are answered in it.

    Who was let in is answered, in the order of coming; the others hear 429 at once, and no prompt of theirs is read.
    """
    async with serving(limits=LimitsConfig(concurrent=4, queued=4)) as client:
        engine, gate = client.engine, client.status.queue
        asked: list[asyncio.Task[Response]] = []
        for _ in range(5):
            came = [client.ask(f"{len(asked) + number}") for number in range(int(4 * times))]
            asked += came
            # Each of them has a place, a turn, or its answer.
            settled = len(asked)
            await wait_until(lambda: len(engine.read) + gate.queued + sum(gate.refused.values()) == settled)  # noqa: B023
            engine.finish()
            await wait_until(lambda: gate.running == len(engine._places))
            probes = [await client.get(path) for path in ("/livez", "/readyz", "/metrics")]
            assert [probe.status_code for probe in probes] == [200, 200, 200]
        while gate.running or gate.queued:
            engine.finish()
            await asyncio.sleep(0.001)
        answers = [await task for task in asked]

        accepted = [answer.request.content for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(accepted) + len(refused) == len(asked)
        assert engine.read == accepted
        assert gate.refused == {"queue": len(refused)}
        assert len(refused) >= len(asked) - 5 * 4 - 4
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        error = refused[0].json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "overloaded")


async def test_a_promise_refuses_who_would_have_to_wait_for_too_long() -> None:
    """With a tenth of a second promised and places that are held for longer, nobody waits."""
    async with serving(limits=LimitsConfig(concurrent=1), slo=SloConfig(ttft_seconds=0.1)) as client:
        first = client.ask("slow")
        await wait_until(lambda: client.engine.read != [])
        await asyncio.sleep(0.2)
        client.engine.finish()
        await first
        second = client.ask("next")
        await wait_until(lambda: len(client.engine.read) == 2)
        refused = await client.ask("third")
        client.engine.finish()

        assert refused.status_code == 429
        assert (await second).status_code == 200
        assert client.status.queue.refused == {"slo": 1}


async def test_a_client_that_leaves_the_queue_is_never_computed() -> None:
    """Its turn goes to the next one."""
    async with serving(limits=LimitsConfig(concurrent=1)) as client:
        asked = [client.ask(each) for each in ("first", "gone", "next")]
        await wait_until(lambda: client.status.queue.queued == 2)
        asked[1].cancel()
        await wait_until(lambda: client.status.queue.queued == 1)
        while not asked[2].done():
            client.engine.finish()
            await asyncio.sleep(0.001)

        assert [json.loads(body)["prompt"] for body in client.engine.read] == ["first", "next"]
        assert client.status.describe()["queued"] == 0


async def test_the_tokenizer_needs_no_turn() -> None:
    """It is not the engine that answers."""
    async with serving(limits=LimitsConfig(concurrent=1, queued=0)) as client:
        running = client.ask("first")
        await wait_until(lambda: client.status.queue.running == 1)

        assert (await client.ask("x", path="/tokenize")).status_code == 200
        client.engine.finish()
        await running


async def test_the_tokenizer_has_limits_of_its_own() -> None:
    """As many requests are under way there as in the engine, and one more waits or is refused as there."""
    async with serving(limits=LimitsConfig(concurrent=1, queued=1)) as client:
        client.engine.tokenizes_at_once = False
        under_way = [client.ask(str(number), path="/tokenize") for number in range(2)]
        await wait_until(lambda: client.status.queued == 1)

        assert (await client.ask("x", path="/tokenize")).status_code == 429
        engine = client.ask("first")
        await wait_until(lambda: client.status.queue.running == 1)
        while not all(task.done() for task in (engine, *under_way)):
            client.engine.finish()
            await asyncio.sleep(0)
        assert {(await task).status_code for task in (engine, *under_way)} == {200}


@pytest.mark.parametrize(("path", "status"), [("/tokenize", 413), (COMPLETION, 200)])
async def test_what_is_tokenized_alone_has_a_bound_of_its_own(path: str, status: int) -> None:
    """No model's length bounds it, and it holds the tokenizer."""
    async with serving(limits=LimitsConfig(tokenizer_bytes=1000)) as client:
        asked = client.ask("x" * 1000, path=path)
        while not asked.done():
            client.engine.finish()
            await asyncio.sleep(0)
        answer = await asked

    assert answer.status_code == status
    if status == 413:
        assert "at most 1000 are tokenized in one request (limits.tokenizer_bytes)" in answer.json()["error"]["message"]


@pytest.mark.parametrize("answers", [False, True])
async def test_an_answer_that_takes_too_long_is_504_and_its_work_is_ended(answers: bool) -> None:
    """Nothing was sent yet, so there is a status to say it with, whatever the engine makes of being told to stop."""
    async with serving(limits=LimitsConfig(total_seconds=0.05)) as client:
        client.engine.answers_when_cancelled = answers
        late = await client.ask("first")

        assert late.status_code == 504
        assert late.json()["error"]["code"] == "deadline_exceeded"
        assert "its limits.total_seconds of 0.05 seconds" in late.json()["error"]["message"]
        assert (client.engine.aborted, client.status.queue.running) == (1, 0)


@pytest.mark.parametrize(
    ("path", "begins"),
    [(COMPLETION, 'data: {"error": {'), ("/v1/messages", 'event: error\ndata: {"error": {')],
)
async def test_a_stream_that_takes_too_long_ends_with_an_error_of_its_protocol(path: str, begins: str) -> None:
    """Its first token came in time, which is another limit; its work is ended."""
    limits = LimitsConfig(first_token_seconds=60, total_seconds=0.05)
    async with serving(limits=limits) as client:
        late = await client.ask("first", path, stream=True)
        first, last = late.text.strip().split("\n\n")

        assert late.status_code == 200
        assert first == 'data: {"first": 1}'
        assert last.startswith(begins)
        assert "deadline_exceeded" in last
        assert (client.engine.aborted, client.status.queue.running) == (1, 0)


async def test_who_waits_for_longer_than_a_first_token_may_take_is_504() -> None:
    """The wait for its turn counts."""
    async with serving(limits=LimitsConfig(concurrent=1, first_token_seconds=0.05)) as client:
        running = client.ask("first")
        await wait_until(lambda: client.status.queue.running == 1)
        late = await client.ask("late")
        client.engine.finish()

        assert late.status_code == 504
        assert "limits.first_token_seconds" in late.json()["error"]["message"]
        # Of an answer that is not streamed only the wait counts.
        assert (await running).status_code == 200


async def test_a_key_is_told_what_is_left_of_its_minute() -> None:
    """
    With each answer; what was counted goes in the place of what was estimated, and what was refused costs nothing.
    """
    call = ModelRequest(Operation.COMPLETION, b"x" * 400)
    async with serving(limits=LimitsConfig(concurrent=1, queued=0)) as client:
        manager = client.manager
        manager.rate_limiter.apply({"team": KeyLimitsConfig(requests_per_minute=2, tokens_per_minute=1000)})

        async def ask() -> tuple[ModelResponse, RequestContext]:
            with use_context("r") as record:
                record.key = "team"
                reply = await manager.handle("one", call)
                return reply, record

        first = asyncio.create_task(ask())
        await wait_until(lambda: client.status.queue.running == 1)
        with pytest.raises(RateLimitedError, match="has 1 requests running"):
            await ask()
        record = client.engine.records[0]
        assert record is not None
        record.prompt_tokens, record.output_tokens = 300, 500
        client.engine.finish()
        counted, _ = await first
        second = asyncio.create_task(ask())
        await wait_until(lambda: client.status.queue.running == 1)
        client.engine.finish()
        estimated, _ = await second
        with pytest.raises(RateLimitedError, match="has used up its 2 requests a minute") as caught:
            await ask()

        assert 200 <= int(counted.headers["x-ratelimit-remaining-tokens"]) < 300
        # The prompt had more tokens than its size let expect, and so is expected of the next one.
        assert int(estimated.headers["x-ratelimit-remaining-tokens"]) < 100
        assert caught.value.headers["x-ratelimit-remaining-requests"] == "0"
        assert manager.rate_limiter.refused == {"key_requests": 1}


@pytest.mark.parametrize(
    "path",
    [
        CHAT,
        "/openai/v1/completions",
        "/v1/models/one:predict",
        "/v2/models/one/infer",
        "/v2/models/one/generate",
        "/v2/repository/index",
    ],
)
async def test_what_is_nested_too_deeply_is_refused_wherever_it_comes_in(path: str) -> None:
    """In the shape of errors that the protocol has, and before anything decodes it."""
    server = ServerConfig.model_validate({"limits": {"json_depth": 8}})
    deep = b'{"model": "one", "x": ' + b"[" * 8 + b"]" * 8 + b"}"
    async with serving(server) as client:
        refused = await client.post(path, content=deep)
        text = refused.json()["error"] if "/v2" in path or ":" in path else refused.json()["error"]["message"]

        assert refused.status_code == 400
        assert text == "The body is nested too deeply; server.limits.json_depth allows 8 levels"


async def test_depth_is_told_of_what_was_compressed() -> None:
    """And of what an event holds."""
    server = ServerConfig.model_validate({"limits": {"json_depth": 8}})
    deep = gzip.compress(b'{"instances": ' + b"[" * 9 + b"]" * 9 + b"}")
    async with serving(server) as client:
        refused = await client.post("/v1/models/one:predict", content=deep, headers={"content-encoding": "gzip"})

        assert refused.json() == {"error": "The body is nested too deeply; server.limits.json_depth allows 8 levels"}
