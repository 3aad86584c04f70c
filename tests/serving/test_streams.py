"""Our writers of streams beside vLLM's own, fed with the same outputs of an engine."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.core.errors import EngineDeadError, RequestError
from appliance.engines.vllm.errors import translate_errors
from appliance.engines.vllm.patches import raise_message_errors, write_plain_streams
from appliance.engines.vllm.sse import is_plain

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PROMPT = [1, 2, 3, 4, 5]


@dataclass(frozen=True)
class Step:
    """What the engine gives at once: a text, how many tokens it has, and why it is the last."""

    text: str
    tokens: int = 1
    finish: str | None = None
    stop: int | str | None = None


class BrokenError(Exception):
    """The engine breaks in the middle."""


async def _outputs(steps: Sequence[Step | Exception]) -> AsyncGenerator[Any]:
    from vllm.outputs import CompletionOutput, RequestOutput

    for number, step in enumerate(steps):
        if isinstance(step, Exception):
            raise step
        output = CompletionOutput(0, step.text, [7] * step.tokens, None, None, None, step.finish, step.stop)
        prompt = PROMPT if number == 0 else None
        yield RequestOutput("id", "x", prompt, None, [output], step.finish is not None, num_cached_tokens=0)


def _serving(kind: str, fingerprint: str | None, cls: type | None = None) -> Any:
    """vLLM's serving class without an engine: all that its writers ask of it."""
    if kind == "chat":
        from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat as Serving
    else:
        from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion as Serving
    made: Any = cls or Serving
    serving = made.__new__(made)
    serving.parser_cls = None
    serving.response_role = "assistant"
    serving.system_fingerprint = fingerprint
    serving.request_logger = None
    serving.log_error_stack = False
    for option in ("force_include_usage", "prompt_tokens_details", "per_request_metrics", "log_outputs", "log_deltas"):
        setattr(serving, f"enable_{option}", False)
    serving._include_reasoning_tokens_details = False
    return serving


def _request(kind: str, **options: Any) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    if kind == "chat":
        return ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "x"}], stream=True, **options)
    return CompletionRequest(model="m", prompt="x", stream=True, **options)


def _stream(serving: Any, kind: str, request: Any, steps: Sequence[Step | Exception]) -> AsyncGenerator[str | bytes]:
    """The writer's stream, called with the arguments that vLLM passes by position and by name."""
    outputs, metadata = _outputs(steps), SimpleNamespace()
    arguments: tuple[Any, ...]
    if kind == "chat":
        write, arguments = serving.chat_completion_stream_generator, (request, outputs, "chatcmpl-1", "org/m", [])
        return cast("AsyncGenerator[str | bytes]", write(*arguments, object(), metadata, chat_template_kwargs=None))
    numbered = ((0, output) async for output in outputs)
    write, arguments = serving.completion_stream_generator, (request, [{"prompt": "x"}], numbered, "cmpl-1", 5)
    named = {"num_prompts": 1, "tokenizer": None, "request_metadata": metadata}
    return cast("AsyncGenerator[str | bytes]", write(*arguments, "org/m", **named))


async def _objects(stream: AsyncGenerator[str | bytes]) -> list[Any]:
    """The events as objects, without the time that they were made at."""
    chunks = [chunk if isinstance(chunk, str) else chunk.decode() async for chunk in stream]
    assert all(chunk.startswith("data: ") and chunk.endswith("\n\n") for chunk in chunks)
    texts = "".join(chunks).split("\n\n")[:-1]
    found = [json.loads(text[6:]) if "[DONE]" not in text[:12] else "[DONE]" for text in texts]
    return [each if isinstance(each, str) else {**each, "created": 0} for each in found]


async def _both(kind: str, steps: Sequence[Step | Exception], fingerprint: str | None, **options: Any) -> Any:
    ours, theirs = _serving(kind, fingerprint), _serving(kind, fingerprint)
    write_plain_streams(*((ours, _serving("completion", None)) if kind == "chat" else (_serving("chat", None), ours)))
    request = _request(kind, **options)
    return (
        await _objects(_stream(ours, kind, request, steps)),
        await _objects(_stream(theirs, kind, request, steps)),
    )


ENDS: dict[str, Sequence[Step | Exception]] = {
    "stop": [Step("The"), Step(" end"), Step("", 1, "stop")],
    "length": [Step("a"), Step("b", 1, "length")],
    "stop string": [Step("a", 2), Step("", 1), Step("b", 1, "stop", "###")],
    "stop token": [Step("a"), Step("", 1, "stop", 128009)],
    "split character": [Step("", 1), Step("", 1), Step("é"), Step("", 1), Step("🎈", 1), Step("", 1, "stop")],
    "prompt in steps": [Step("", 0), Step("", 0), Step("a"), Step("b", 1, "stop")],
    "quotes and lines": [Step('"'), Step("\\n\n\r\t\x00\x7f\u2028</script>"), Step('{"a": 1}', 1, "stop")],
    "its own placeholder": [Step("the text goes here"), Step('"the text goes here"', 1, "stop")],
    "several tokens at once": [Step("several tokens", 4), Step(" more", 3, "length")],
    "one output": [Step("all", 3, "stop")],
    "nothing at all": [],
    "aborted before the first token": [Step("", 0, "abort")],
    "aborted": [Step("a"), Step("", 0, "abort")],
}


@pytest.mark.parametrize("fingerprint", [None, "fp"])
@pytest.mark.parametrize("has_usage", [False, True])
@pytest.mark.parametrize("kind", ["chat", "completion"])
@pytest.mark.parametrize("end", ENDS)
async def test_a_plain_stream_is_vllms_object_by_object(
    kind: str, end: str, has_usage: bool, fingerprint: str | None
) -> None:
    """However a stream goes and ends, a client reads the same objects in the same order."""
    ours, theirs = await _both(kind, ENDS[end], fingerprint, stream_options={"include_usage": has_usage})

    assert ours == theirs


@given(
    st.lists(st.tuples(st.text(max_size=8), st.integers(0, 4)), max_size=12),
    st.sampled_from(["stop", "length"]),
    st.one_of(st.none(), st.integers(0, 9), st.text(max_size=3)),
    st.sampled_from(["chat", "completion"]),
    st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.too_slow])
async def test_any_plain_stream_is_vllms(
    pieces: list[tuple[str, int]], finish: str, stop: int | str | None, kind: str, has_usage: bool
) -> None:
    """The same holds for texts and token counts that nobody thought of."""
    steps = [*(Step(text, tokens) for text, tokens in pieces), Step("", 1, finish, stop)]
    ours, theirs = await _both(kind, steps, None, stream_options={"include_usage": has_usage})

    assert ours == theirs


NOT_PLAIN: dict[str, Iterable[tuple[str, dict[str, Any]]]] = {
    "chat": [
        ("n", {"n": 2}),
        ("logprobs", {"logprobs": True, "top_logprobs": 1}),
        ("echo", {"echo": True, "add_generation_prompt": False}),
        ("token ids", {"return_token_ids": True}),
        ("running usage", {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}),
    ],
    "completion": [
        ("n", {"n": 2}),
        ("logprobs", {"logprobs": 0}),
        ("echo", {"echo": True}),
        ("token ids", {"return_token_ids": True}),
        ("running usage", {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}),
    ],
}


@pytest.mark.parametrize(
    ("kind", "options"),
    [pytest.param(kind, options, id=f"{kind}-{name}") for kind, rows in NOT_PLAIN.items() for name, options in rows],
)
def test_anything_more_is_left_to_vllm(kind: str, options: dict[str, Any]) -> None:
    """A request whose chunks differ in more than their text is none of ours."""
    assert is_plain(_serving(kind, None), _request(kind))
    assert not is_plain(_serving(kind, None), _request(kind, **options))


async def test_what_is_not_plain_is_written_by_vllm() -> None:
    """Running usage, which each chunk has anew, is there."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    ours, theirs = await _both("chat", ENDS["stop"], None, stream_options=options)

    assert ours == theirs
    assert [each["usage"]["completion_tokens"] for each in ours[:-1]] == [0, 1, 2, 3, 3]


def _faults() -> dict[str, tuple[Exception | Step, type[Exception]]]:
    from vllm.exceptions import GenerationError, VLLMValidationError
    from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError

    return {
        "death": (VllmEngineDeadError(), EngineDeadError),
        "mistake": (VLLMValidationError("no", parameter="top_k"), RequestError),
        "fault": (BrokenError("inside"), BrokenError),
        "failure": (Step("", 0, "error"), GenerationError),
    }


@pytest.mark.parametrize("kind", ["chat", "completion"])
@pytest.mark.parametrize("writes_plainly", [True, False])
@pytest.mark.parametrize("fault", ["death", "mistake", "fault", "failure"])
async def test_what_ends_a_stream_is_raised(kind: str, writes_plainly: bool, fault: str) -> None:
    """Whoever writes the stream: vLLM writes an event of its own, and goes on to a good end with status 200."""
    step, error = _faults()[fault]
    serving = _serving(kind, None)
    write_plain_streams(
        *((serving, _serving("completion", None)) if kind == "chat" else (_serving("chat", None), serving))
    )

    request = _request(kind, stream_options={"include_usage": True, "continuous_usage_stats": not writes_plainly})

    assert is_plain(serving, request) is writes_plainly
    with pytest.raises(error):
        await _objects(_stream(serving, kind, request, [Step("a"), step]))


@pytest.mark.parametrize("kind", ["chat", "completion"])
@pytest.mark.parametrize("writes_plainly", [True, False])
async def test_a_refusal_of_the_engine_comes_before_the_stream(kind: str, writes_plainly: bool) -> None:
    """Nothing is written before the engine has taken the request, so that a refusal still has a status."""
    step, error = _faults()["mistake"]
    serving = _serving(kind, None)
    write_plain_streams(
        *((serving, _serving("completion", None)) if kind == "chat" else (_serving("chat", None), serving))
    )

    request = _request(kind, stream_options={"include_usage": True, "continuous_usage_stats": not writes_plainly})

    with pytest.raises(error):
        await anext(_stream(serving, kind, request, [step]))


@pytest.mark.parametrize("fault", ["death", "mistake", "fault"])
@pytest.mark.parametrize("is_first", [True, False])
async def test_what_ends_a_stream_of_messages_is_raised(fault: str, is_first: bool) -> None:
    """Anthropic's streams are made of a chat's, and an error goes through both."""
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages

    step, error = _faults()[fault]
    serving = _serving("chat", None, AnthropicServingMessages)
    raise_message_errors(serving)
    steps = [step] if is_first else [Step("a"), Step("b"), step]

    stream = serving.message_stream_converter(_stream(serving, "chat", _request("chat"), steps))
    seen: list[str] = []
    with pytest.raises(error):
        await _read(stream, seen)

    assert bool(seen) is not is_first
    assert not any("event: error" in event for event in seen)


async def _read(stream: AsyncGenerator[str], seen: list[str]) -> None:
    with translate_errors():
        async for event in stream:
            seen.append(event)  # noqa: PERF401 - what came before an error counts


async def test_closing_a_stream_closes_the_engines() -> None:
    """When the client is gone, the request ends in the engine at once, not when somebody collects garbage."""
    closed = []

    async def endless() -> AsyncGenerator[Any]:
        try:
            while True:
                async for output in _outputs([Step("a")]):
                    yield output
        finally:
            closed.append(True)

    serving = _serving("chat", None)
    write_plain_streams(serving, _serving("completion", None))
    stream = serving.chat_completion_stream_generator(_request("chat"), endless(), "id", "m", [], object(), None)
    await anext(stream)
    await anext(stream)

    await stream.aclose()

    assert closed == [True]
