"""Chats through Ollama's client and the integrations that speak its API, with a real engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import ollama
import pytest
from questions import CAPITAL, MESSAGES
from server_process import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

QUESTION: Any = MESSAGES
GREEDY = {"temperature": 0, "num_predict": 5, "num_ctx": 2048}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
def ollama_client(server: ServerProcess) -> Iterator[ollama.Client]:
    """Ollama's own client."""
    with ollama.Client(server.url, timeout=120) as client:
        yield client


def _expected(server: ServerProcess) -> str:
    body = {"model": "smollm2", "messages": QUESTION, "temperature": 0, "max_tokens": 5}
    text: str = server.post("/v1/chat/completions", body)[1]["choices"][0]["message"]["content"]
    return text


def test_a_chat_is_that_of_openai_s_route(server: ServerProcess, ollama_client: ollama.Client) -> None:
    """Whole or streamed; with the counts and durations that its users compute speeds from."""
    whole = ollama_client.chat("smollm2:latest", QUESTION, options=GREEDY)
    parts = list(ollama_client.chat("gpt-4o-mini", QUESTION, options=GREEDY, stream=True, keep_alive=-1))
    counted = {"model": "smollm2", "messages": QUESTION, "max_tokens": 1}
    usage = server.post("/v1/chat/completions", counted)[1]["usage"]

    assert whole.message.content == "".join(part.message.content or "" for part in parts) == _expected(server)
    assert (whole.model, {part.model for part in parts}) == ("smollm2:latest", {"gpt-4o-mini"})
    for last in (whole, parts[-1]):
        assert (last.done, last.done_reason, last.eval_count) == (True, "length", 5)
        assert last.prompt_eval_count == usage["prompt_tokens"]
        assert (last.total_duration or 0) >= (last.eval_duration or 0) > 0
    assert not any(part.done for part in parts[:-1])


def test_text_is_generated_from_a_prompt(server: ServerProcess, ollama_client: ollama.Client) -> None:
    """As a chat, or raw as a completion."""
    chat = ollama_client.generate("smollm2", CAPITAL, options=GREEDY)
    raw = ollama_client.generate(
        "smollm2", "The capital of France is", raw=True, options={**GREEDY, "num_predict": 4}, stream=True
    )
    body = {"model": "smollm2", "prompt": "The capital of France is", "temperature": 0, "max_tokens": 4}

    assert chat.response == _expected(server)
    assert "".join(part.response or "" for part in raw) == server.post("/v1/completions", body)[1]["choices"][0]["text"]


def test_a_response_has_the_format_of_a_schema(ollama_client: ollama.Client) -> None:
    """Or is some JSON."""
    schema = {"type": "object", "properties": {"sunny": {"type": "boolean"}}, "required": ["sunny"]}

    answer = ollama_client.chat("smollm2", QUESTION, format=schema, options={"temperature": 0})

    assert list(json.loads(answer.message.content or "")) == ["sunny"]


def test_tools_and_their_results_are_taken(ollama_client: ollama.Client) -> None:
    """Of a model that may call them or not; a result follows its call."""
    call = {"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    messages: list[Any] = [
        {"role": "user", "content": "How is the weather in Paris?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "get_weather", "content": "sunny"},
    ]

    answer = ollama_client.chat("smollm2", messages, tools=[TOOL], options=GREEDY)

    assert answer.message.content or answer.message.tool_calls


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"options": {"typical_p": 0.5}}, "options.typical_p"),
        ({"think": True}, "reasoning_parser"),
        ({"messages": [{**QUESTION[0], "images": ["iVBORw0KGgo="]}]}, "image_url"),
        ({"model": "nobody"}, "does not exist"),
        ({"options": {"temperature": -1}}, "temperature"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, "context length"),
    ],
)
def test_what_cannot_be_had_is_told(ollama_client: ollama.Client, fields: dict[str, Any], says: str) -> None:
    """With the words of the server in the client's error."""
    with pytest.raises(ollama.ResponseError, match=says) as refused:
        ollama_client.chat(**{"model": "smollm2", "messages": QUESTION, **fields})

    assert refused.value.status_code in {400, 404}


def test_models_are_listed_for_its_tools(ollama_client: ollama.Client) -> None:
    """With what they can do and how much they take; they are not pulled."""
    names = {model.model for model in ollama_client.list().models}
    shown = ollama_client.show("smollm2")

    assert {"smollm2", "gpt-4o-mini", "org/small", "wild"} <= names
    assert {process.model for process in ollama_client.ps().models} == names
    assert shown.capabilities == ["completion", "tools"]
    assert shown.modelinfo
    assert shown.modelinfo[f"{shown.modelinfo['general.architecture']}.context_length"] > 1000
    with pytest.raises(ollama.ResponseError, match="config"):
        ollama_client.pull("llama3")


def test_langchain_chats(server: ServerProcess) -> None:
    """With its integration of Ollama, whole and streamed."""
    from langchain_ollama import ChatOllama

    model = ChatOllama(
        model="smollm2", base_url=server.url, temperature=0, num_predict=5, num_ctx=2048, validate_model_on_init=True
    )

    with model._client:  # it has no method to close it
        whole = model.invoke(CAPITAL)
        streamed = "".join(str(part.content) for part in model.stream(CAPITAL))

    assert whole.content == streamed == _expected(server)
    assert whole.usage_metadata
    assert whole.usage_metadata["output_tokens"] == 5


def test_llama_index_chats(server: ServerProcess, ollama_client: ollama.Client) -> None:
    """With its integration of Ollama."""
    from llama_index.llms.ollama import Ollama

    model = Ollama("smollm2", client=ollama_client, temperature=0, additional_kwargs={"num_predict": 5})

    assert model.complete(CAPITAL).text == _expected(server)
    assert "".join(part.delta or "" for part in model.stream_complete(CAPITAL)) == _expected(server)


def test_hugging_face_s_client_chats(server: ServerProcess) -> None:
    """At the root of the server, as with text generation servers."""
    from huggingface_hub import InferenceClient

    with InferenceClient(base_url=server.url, api_key="none") as client:
        answer = client.chat_completion(QUESTION, model="smollm2", temperature=0, max_tokens=5)

    assert answer.choices[0].message.content == _expected(server)


def test_several_chats_are_those_of_each(server: ServerProcess) -> None:
    """In one request of vLLM's server, and by SageMaker's path."""
    common = {"model": "smollm2", "temperature": 0, "max_tokens": 5}

    _, batch = server.post("/v1/chat/completions/batch", {**common, "messages": [QUESTION, QUESTION]})
    _, invoked = server.post("/invocations", {**common, "messages": QUESTION})

    assert [choice["message"]["content"] for choice in batch["choices"]] == [_expected(server)] * 2
    assert invoked["choices"][0]["message"]["content"] == _expected(server)
    assert batch["usage"]["completion_tokens"] == 10
