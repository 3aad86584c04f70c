"""Tokens that are sent at each step of an engine, beside those that vLLM's output processor and our writer make."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.core.request_context import use_context
from appliance.engines.vllm import direct_stream, patches
from appliance.engines.vllm.sse import write_chat

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TEXT = 'One, "two",\n three: naïve 🎈🎈 \u2028 日本語 and so on.'


class Engine:
    """vLLM's output processor without an engine, with the streams of some requests."""

    def __init__(self, tokenizer: Any, *, is_direct: bool) -> None:
        from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

        self.output_processor = OutputProcessor(tokenizer, log_stats=True)
        self.waiting: asyncio.Queue[object] = asyncio.Queue()
        self.engine_core = SimpleNamespace(outputs_queue=self.waiting)
        self.statistics: list[Any] = []
        self.now = 100.0
        RequestOutputCollector.direct = None
        if is_direct:
            patches.process_directly(self)

    def add(self, name: str, **options: Any) -> AsyncGenerator[Any]:
        """Begin a request; its outputs, as `AsyncLLM.generate` yields them."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        from vllm.v1.engine import EngineCoreRequest
        from vllm.v1.engine.output_processor import RequestOutputCollector

        params = SamplingParams(output_kind=RequestOutputKind.DELTA, **options)
        request = EngineCoreRequest(
            f"{name}-inside", [1, 2, 3], None, params, None, self.now, None, None, None, external_req_id=name
        )
        collector = RequestOutputCollector(params.output_kind, f"{name}-inside")
        patches.use_single_waiter_event(collector)
        self.output_processor.add_request(request, "x", None, 0, collector)

        async def outputs() -> AsyncGenerator[Any]:
            is_over = False
            while not is_over:
                output = collector.get_nowait() or await collector.get()
                is_over = output.finished
                yield output

        return outputs()

    async def step(
        self, tokens: dict[str, Sequence[int]], *, finish: Any = None, version: str = "1", **fields: Any
    ) -> None:
        """Give each request its tokens, and let all readers read."""
        from vllm.v1.engine import EngineCoreOutput
        from vllm.v1.metrics.stats import IterationStats

        self.now += 1
        outputs = [
            EngineCoreOutput(f"{name}-inside", list(ids), finish_reason=finish, **fields)
            for name, ids in tokens.items()
        ]
        statistics = IterationStats()
        self.output_processor.process_outputs(outputs, self.now, statistics, weight_version=version)
        # Without those that are seconds on this machine's clock.
        finished = [{**vars(each), "e2e_latency": 0} for each in statistics.finished_requests]
        own_clock = {"iteration_timestamp": 0, "time_to_first_tokens_iter": 0, "finished_requests": finished}
        self.statistics.append({**vars(statistics), **own_clock, "prompt_token_stats": 0})
        await _let_all_run()


class Client:
    """Reads a stream, and takes what is sent past it; `is_slow` takes each chunk only once it is told to."""

    def __init__(self, engine: Engine, name: str, outputs: AsyncGenerator[Any], *, is_direct: bool) -> None:
        self.received: list[bytes] = []
        self.is_slow = False
        self.taking: asyncio.Future[None] | None = None
        self.sent_directly = 0
        serving = SimpleNamespace(
            engine_client=engine,
            system_fingerprint=None,
            get_chat_request_role=lambda _: "assistant",
            _raise_if_error=lambda *_: None,
        )
        request = SimpleNamespace(stream_options=SimpleNamespace(include_usage=True))
        send = self.send if is_direct else None
        self._stream = write_chat(serving, request, outputs, name, 5, "m", send)
        self.reading = asyncio.create_task(self._read())

    def send(self, chunk: bytes) -> asyncio.Future[None] | None:
        assert self.taking is None or self.taking.done()
        self.received.append(chunk)
        self.sent_directly += 1
        self.taking = asyncio.get_running_loop().create_future() if self.is_slow else None
        return self.taking

    async def _read(self) -> None:
        async for chunk in self._stream:
            if self.taking is not None:
                await self.taking
            self.received.append(chunk)

    def texts(self) -> list[str]:
        """The texts of the events that have one."""
        events = b"".join(self.received).split(b"\n\n")
        objects = [json.loads(event[6:]) for event in events if event.startswith(b"data: {")]
        return [choice["delta"]["content"] for each in objects for choice in each["choices"][:1]][1:]


async def _let_all_run() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    """The real one, whose tokens may be parts of characters."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


@asynccontextmanager
async def _streaming(tokenizer: Any, *, is_direct: bool = True, **options: Any) -> AsyncIterator[tuple[Engine, Client]]:
    engine = Engine(tokenizer, is_direct=is_direct)
    client = Client(engine, "a", engine.add("a", **options), is_direct=is_direct)
    try:
        await _let_all_run()
        yield engine, client
    finally:
        client.reading.cancel()
        await asyncio.gather(client.reading, return_exceptions=True)


def _ends() -> dict[str, tuple[str, dict[str, Any]]]:
    return {
        "length": ("LENGTH", {}),
        "stop token": ("STOP", {"stop_reason": 7}),
        "abort": ("ABORT", {}),
    }


@pytest.mark.parametrize("end", _ends())
@pytest.mark.parametrize("per_step", [1, 3])
@pytest.mark.parametrize(
    "options", [{}, {"skip_special_tokens": False, "spaces_between_special_tokens": False}], ids=str
)
async def test_a_stream_is_the_same_byte_for_byte(
    tokenizer: Any, end: str, per_step: int, options: dict[str, Any]
) -> None:
    """Events, usage and the engine's statistics are those that vLLM's output processor leads to."""
    from vllm.v1.engine import FinishReason

    reason, fields = _ends()[end]
    ids = tokenizer.encode(TEXT + "<|im_start|><|im_end|>" + TEXT)
    results = []
    for is_direct in (True, False):
        async with _streaming(tokenizer, is_direct=is_direct, **options) as (engine, client):
            for start in range(0, len(ids) - 1, per_step):
                await engine.step({"a": ids[start : start + per_step]}, version="1" if start < 9 else "2")
            last = [] if end == "abort" else ids[-1:]
            await engine.step({"a": last}, finish=FinishReason[reason], **fields)
            await asyncio.wait_for(client.reading, 10)
        results.append((b"".join(client.received), engine.statistics))
        assert (client.sent_directly > 10) == is_direct

    assert results[0] == results[1]


async def test_tokens_past_the_output_processor_are_counted_for_the_request(tokenizer: Any) -> None:
    """The first and the last pass it, and are counted by the reader of its outputs."""
    from vllm.v1.engine import FinishReason

    with use_context("r") as context:
        async with _streaming(tokenizer) as (engine, client):
            for _ in range(5):
                await engine.step({"a": [504]})
            assert client.sent_directly == 4
            await engine.step({"a": [504]}, finish=FinishReason.LENGTH)
            await asyncio.wait_for(client.reading, 10)

    assert context.output_tokens == 4
    assert b'"completion_tokens":6' in b"".join(client.received)


async def test_tokens_of_steps_that_wait_are_sent_together(tokenizer: Any) -> None:
    """While a later step waits nothing is sent; then each token has its own event."""
    async with _streaming(tokenizer) as (engine, client):
        await engine.step({"a": [504]})
        engine.waiting.put_nowait("the next step")
        await engine.step({"a": [504]})
        await engine.step({"a": [504]})
        held = client.sent_directly
        engine.waiting.get_nowait()
        await engine.step({"a": [504]})

        assert (held, client.sent_directly) == (0, 1)
        assert len(client.texts()) == 4


async def test_many_streams_merge_what_they_have_when_steps_wait(tokenizer: Any) -> None:
    """With more than 256 streams, tokens that were held share an event."""
    async with _streaming(tokenizer) as (engine, client):
        for number in range(256):
            engine.add(f"other-{number}")
        await engine.step({"a": [504]})
        engine.waiting.put_nowait("the next step")
        await engine.step({"a": [504]})
        engine.waiting.get_nowait()
        await engine.step({"a": [504]})

        assert len(client.texts()) == 2
        assert client.texts()[1] == client.texts()[0] * 2


async def test_nothing_is_held_for_long(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If steps always wait, tokens are sent after a while."""
    monkeypatch.setattr(direct_stream, "_MAX_DELAY_SECONDS", 0.0)
    async with _streaming(tokenizer) as (engine, client):
        engine.waiting.put_nowait("the next step")
        await engine.step({"a": [504]})
        await engine.step({"a": [504]})

        assert client.sent_directly == 1


async def test_a_slow_client_gets_larger_pieces_in_order(tokenizer: Any) -> None:
    """What it does not take is held, merged, and comes before the last event."""
    from vllm.v1.engine import FinishReason

    ids = tokenizer.encode("one two three four five six seven")
    async with _streaming(tokenizer) as (engine, client):
        await engine.step({"a": ids[:1]})
        client.is_slow = True
        for token in ids[1:4]:
            await engine.step({"a": [token]})
        assert client.sent_directly == 1
        assert client.taking is not None
        client.taking.set_result(None)
        await _let_all_run()
        assert client.sent_directly == 2
        await engine.step({"a": ids[4:5]})
        await engine.step({"a": ids[5:]}, finish=FinishReason.STOP)
        assert not client.reading.done()
        client.taking.set_result(None)
        await asyncio.wait_for(client.reading, 10)

    assert client.texts() == ["one", " two", " three four", " five", " six"]


async def test_a_text_with_stop_strings_is_left_to_vllm(tokenizer: Any) -> None:
    """It looks for them in the whole text, and holds back what may begin one."""
    async with _streaming(tokenizer, stop=["###"]) as (engine, client):
        for _ in range(5):
            await engine.step({"a": [504]})

        assert client.sent_directly == 0


async def test_an_output_with_more_than_a_token_is_left_to_vllm(tokenizer: Any) -> None:
    """Whatever an output has beside its tokens, and whatever a new vLLM adds, is vLLM's."""
    async with _streaming(tokenizer) as (engine, client):
        await engine.step({"a": [504]})
        await engine.step({"a": [504]}, num_nans_in_logits=1)
        assert client.sent_directly == 0
        await engine.step({"a": [504]})

        assert client.sent_directly == 1
        assert len(client.texts()) == 3


async def test_what_cannot_be_sent_ends_its_own_stream_alone(tokenizer: Any) -> None:
    """The error is raised to the reader of the stream, and the step goes on."""
    async with _streaming(tokenizer) as (engine, client):
        await engine.step({"a": [504]})

        def fail(_: bytes) -> None:
            raise RuntimeError("the transport is closed")

        engine.output_processor.request_states["a-inside"].queue.direct._send = fail
        await engine.step({"a": [504]})

        with pytest.raises(RuntimeError, match="the transport is closed"):
            await client.reading


async def test_nothing_is_sent_once_a_stream_is_closed(tokenizer: Any) -> None:
    """A client that left gets no token, though the engine gives some until it hears of the abort."""
    async with _streaming(tokenizer) as (engine, client):
        await engine.step({"a": [504]})
        client.reading.cancel()
        await asyncio.gather(client.reading, return_exceptions=True)
        await client._stream.aclose()
        await engine.step({"a": [504]})

        assert client.sent_directly == 0


def test_an_output_has_nothing_but_tokens_unless_it_says_so() -> None:
    """The comparison with an output of tokens alone covers all its fields."""
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.metrics.stats import IterationStats, RequestStateStats

    assert EngineCoreOutput("a", [1]) == EngineCoreOutput("a", [1])
    assert EngineCoreOutput.__struct_fields__[:2] == ("request_id", "new_token_ids")
    for name in EngineCoreOutput.__struct_fields__[2:]:
        assert EngineCoreOutput("a", [1]) != EngineCoreOutput("a", [1], **{name: 5})
    assert {"num_generation_tokens", "last_token_ts"} <= {each.name for each in dataclasses.fields(RequestStateStats)}
    assert {"num_generation_tokens", "inter_token_latencies_iter"} <= vars(IterationStats()).keys()
