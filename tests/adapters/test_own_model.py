"""Chat through an adapter over our own model, held against that model's own chat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam
from questions import LONG, MESSAGES, TALK
from server_process import ServerProcess

pytestmark = pytest.mark.slow


@pytest.fixture
def client(adapted_server: ServerProcess) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with openai.OpenAI(base_url=f"{adapted_server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def _both(client: openai.OpenAI, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    own, adapted = (
        client.chat.completions.create(model=model, **({"temperature": 0} | fields)) for model in ("smollm2", "adapted")
    )
    return _comparable(own, near=pytest.approx), _comparable(adapted, near=lambda logprob, **_: logprob)


def _comparable(done: ChatCompletion, near: Callable[..., Any]) -> dict[str, Any]:
    """All that must be the same: not the id, the time, the name, and what vLLM says about completions alone."""
    made = done.model_dump(include={"choices", "usage"})
    for choice in made["choices"]:
        choice["message"] = {key: choice["message"][key] for key in ("role", "content")}
        for token in (choice["logprobs"] or {}).get("content") or ():
            # Two runs on the CPU agree to a few digits; which of two like ones comes first is not among them.
            token["logprob"] = near(token["logprob"], abs=0.05)
            token["top_logprobs"] = len(token["top_logprobs"])
    keys = ("index", "message", "logprobs", "finish_reason", "stop_reason")
    return {"usage": made["usage"], "choices": [{key: choice[key] for key in keys} for choice in made["choices"]]}


@pytest.mark.parametrize("messages", [MESSAGES, TALK], ids=["question", "talk"])
def test_an_adapted_chat_equals_that_of_the_model(client: openai.OpenAI, messages: Any) -> None:
    """Role, text, end and counts are the same."""
    own, adapted = _both(client, messages=messages, max_completion_tokens=40)

    assert adapted == own


def test_without_a_limit_the_model_finishes(client: openai.OpenAI) -> None:
    """The context's room is the limit of both, not the 16 tokens at which a completion ends."""
    own, adapted = _both(client, messages=LONG)

    assert adapted == own
    assert adapted["usage"]["completion_tokens"] > 16
    assert adapted["choices"][0]["finish_reason"] == "stop"


def test_adapted_logprobs_equal_those_of_the_model(client: openai.OpenAI) -> None:
    """Tokens, bytes, and as many alternatives as were asked for."""
    own, adapted = _both(client, messages=MESSAGES, max_tokens=8, logprobs=True, top_logprobs=2)

    assert adapted == own
    assert {token["top_logprobs"] for token in adapted["choices"][0]["logprobs"]["content"]} == {2}


def test_sampling_fields_reach_the_model(client: openai.OpenAI) -> None:
    """Fields of sampling reach the engine."""
    fields = {"temperature": 1, "n": 2, "stop": ["Paris"], "seed": 3, "max_tokens": 20, "extra_body": {"top_k": 1}}

    own, adapted = _both(client, messages=MESSAGES, **fields)

    assert adapted == own
    assert [choice["index"] for choice in adapted["choices"]] == [0, 1]


def test_an_adapted_stream_equals_that_of_the_model(client: openai.OpenAI) -> None:
    """The same pieces with the same usage at the end, the role in the first and the reason in the last."""
    streams = {}
    for model in ("smollm2", "adapted"):
        chunks = list(
            client.chat.completions.create(
                model=model,
                messages=TALK,
                temperature=0,
                max_tokens=30,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        roles = [chunk.choices[0].delta.role for chunk in chunks if chunk.choices]
        reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        assert roles == ["assistant", *[None] * (len(roles) - 1)]
        assert reasons[:-1] == [None] * (len(reasons) - 1)
        streams[model] = (text, reasons[-1], chunks[-1].usage)

    assert streams["adapted"] == streams["smollm2"]


def test_a_prompt_that_is_too_long_is_refused(client: openai.OpenAI) -> None:
    """400 with the engine's words, through the adapter as without it."""
    long: list[ChatCompletionMessageParam] = [{"role": "user", "content": "word " * 3000}]

    for model in ("smollm2", "adapted"):
        with pytest.raises(openai.BadRequestError, match=r"maximum context length|longer than"):
            client.chat.completions.create(model=model, messages=long, max_tokens=5)


def test_an_adapter_is_ready_after_its_target(adapted_server: ServerProcess) -> None:
    """The adapter was ready only after its target was, though it stands first in the file."""
    changes = [each for each in adapted_server.events() if each["event"] == "model.state_changed"]

    assert [each["model"] for each in changes if each["to"] == "ready"] == ["smollm2", "adapted"]
