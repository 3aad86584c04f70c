"""Proxies and adapters in Python: the classes of the file, with methods to override."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from python_api.model_requests import CHAT, events, response_json
from python_api.program import Program
from upstreams import Upstream, error, json_answer

from appliance.core.errors import ApplianceError, ConfigError, GatewayError, RequestError
from appliance.core.model import OPENAI_PATHS, DependsOnModels, Model, ModelRequest, Operation
from appliance.openai import ChatPrompt, OpenAIChatAdapterModel, OpenAIGenerativeModel, OpenAIProxyModel
from appliance.openai.types import ChatCompletion, ChatCompletionRequest
from appliance.python_api.base_model import BasePythonModel
from appliance.python_api.model_adapter import PythonModelAdapter

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


async def served(model: BasePythonModel) -> Model:
    """The model behind its bridge, loaded and well."""
    bridge = PythonModelAdapter(model)
    await bridge.load({})
    async with asyncio.timeout(10):
        while True:
            try:
                await bridge.check()
            except ApplianceError:
                await asyncio.sleep(0.02)
            else:
                return bridge


@pytest.fixture(scope="module")
def upstream_of_all() -> Any:
    """One upstream for the program of this file."""
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def backed(start: Callable[..., Program], upstream_of_all: Upstream) -> Program:
    """The program, ready."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UPSTREAM", upstream_of_all.url)
        program = start("backed.py")
    return program.wait_until_ready(60)


def test_a_proxy_in_python_changes_requests_and_answers(backed: Program, upstream_of_all: Upstream) -> None:
    """Its method asks the upstream through its parent's."""
    answer = backed.client().chat.completions.create(model="shouting", messages=HELLO, temperature=0.5)

    asked = upstream_of_all.calls[-1]
    assert answer.choices[0].message.content == "YOU SAID: SHOUT"
    assert [each["content"] for each in asked.json()["messages"]] == ["Hello", "shout"]
    assert asked.json()["temperature"] == 0.5
    assert asked.header("authorization") == "Bearer secret"


def test_a_proxy_in_python_streams(backed: Program) -> None:
    """Its parent's method returns the chunks as objects."""
    chunks = list(backed.client().chat.completions.create(model="shouting", messages=HELLO, stream=True))

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "You said: shout"
    assert {chunk.model for chunk in chunks} == {"shouting"}


def test_what_a_proxy_does_not_override_is_passed_on(backed: Program, upstream_of_all: Upstream) -> None:
    """Every operation of the class, byte by byte."""
    client = backed.client()
    vectors = client.embeddings.create(model="shouting", input="Hello").data
    completion = client.completions.create(model="shouting", prompt="Hello", extra_body={"unknown": None})
    status, tokens = backed.post("/v1/responses", {"model": "shouting", "input": "Hello"})

    assert len(vectors[0].embedding) == 4
    assert completion.choices[0].text == "You said: Hello"
    assert (status, tokens["object"]) == (200, "response")
    assert any(each.json().get("unknown", 0) is None for each in upstream_of_all.calls)


def test_probes_show_the_upstreams_of_a_proxy_in_python(backed: Program) -> None:
    """As they do for a proxy of a file; no key is among them."""
    _, standing = backed.get("/readyz")

    assert standing["models"][0]["upstreams"][0]["name"].startswith("127.0.0.1:")
    assert "secret" not in json.dumps(standing)
    assert "secret" not in backed.log.read_text()


def test_an_adapter_in_python_chats_over_completions(backed: Program, upstream_of_all: Upstream) -> None:
    """The whole conversation becomes the prompt, and every field goes along."""
    messages: list[ChatCompletionMessageParam] = [{"role": "system", "content": "Be kind."}, *HELLO]
    answer = backed.client().chat.completions.create(
        model="adapted", messages=messages, top_p=0.5, max_completion_tokens=7, extra_body={"top_k": 3}
    )

    asked = upstream_of_all.calls[-1]
    assert asked.path == "/v1/completions"
    assert answer.choices[0].message.content == "You said: Be kind. Hello"
    assert str(answer.choices[0].message.role) == "bot"
    wanted = {"prompt": "Be kind. Hello", "top_p": 0.5, "max_tokens": 7, "top_k": 3}
    assert wanted.items() <= asked.json().items()


def test_an_adapter_in_python_streams(backed: Program) -> None:
    """The role comes first and once, the reason last and once."""
    client: OpenAI = backed.client()
    chunks = list(client.chat.completions.create(model="adapted", messages=HELLO, stream=True))

    assert [chunk.choices[0].delta.role for chunk in chunks if chunk.choices[0].delta.role] == ["bot"]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "You said: Hello"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]


async def test_proxy_depends_on_models(upstream: Upstream) -> None:
    """Unchanged it is the proxy of a file: all operations, no proof, its upstreams."""
    model = await served(OpenAIProxyModel("mine", upstream.url, model="theirs"))
    reply = await model.handle(ModelRequest(Operation.CHAT_COMPLETION, json.dumps(CHAT).encode()))
    await model.close()

    assert upstream.calls[0].json()["model"] == "theirs"
    assert model.operations == frozenset(OPENAI_PATHS)
    assert model.warmup_request is None
    assert isinstance(model, DependsOnModels)
    assert response_json(reply)["choices"][0]["message"]["content"] == "You said: Hello"


def test_a_proxy_with_methods_of_its_own_has_no_warmup_request() -> None:
    """Its health checks show that the upstream answers; a request would cost money."""

    class Own(OpenAIProxyModel):
        async def create_chat_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
            return await super().create_chat_completion(request, raw_request, context)

    assert PythonModelAdapter(Own("mine", "http://upstream.example")).warmup_request is None


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"target_url": "somewhere"}, r"upstreams\.0\.url: String should match pattern"),
        ({"target_url": "http://a", "retries": {}}, "retries: unknown key"),
    ],
)
def test_keywords_of_a_proxy_are_those_of_the_file(keys: dict[str, Any], fault: str) -> None:
    """A wrong one is told when the proxy is made."""
    with pytest.raises(ConfigError, match=fault):
        OpenAIProxyModel("mine", **keys)


async def test_error_of_the_upstream_is_raised(upstream: Upstream) -> None:
    """With its status, so that a method may catch it."""
    model = OpenAIProxyModel("mine", upstream.url)
    bridge = await served(model)
    upstream.on("/v1/chat/completions", error(418, "too hot"))
    request = ChatCompletionRequest(**CHAT)

    with pytest.raises(RequestError, match="too hot") as refused:
        await model.create_chat_completion(request)
    upstream.on("/v1/chat/completions")
    answer = await model.create_chat_completion(request)
    await bridge.close()

    assert refused.value.status == 418
    assert isinstance(answer, ChatCompletion)


class Completing(OpenAIGenerativeModel):
    """Says its prompt, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__("underlying")
        self.asked: list[Any] = []
        self.life: list[str] = []

    def load(self) -> None:
        self.life.append("load")

    def stop(self) -> None:
        self.life.append("stop")

    async def create_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
        self.asked.append((request, context))
        return {"choices": [{"index": 0, "text": request.prompt, "finish_reason": "stop"}]}


async def _chat(model: Model, /, **body: Any) -> Any:
    return await model.handle(
        ModelRequest(Operation.CHAT_COMPLETION, json.dumps({**CHAT, **body}).encode(), {"x-a": "b"})
    )


async def test_an_adapter_wraps_a_model_in_python() -> None:
    """
    With a chat template the adapter is a line; the wrapped model is loaded and stopped with it, and hears the headers.
    """
    underlying = Completing()
    model = await served(OpenAIChatAdapterModel("adapter", underlying, chat_template=TEMPLATE, stop=["<end>"]))
    answer = response_json(await _chat(model, model="adapter"))
    streamed = await events(await _chat(model, stream=True))
    completed = await model.handle(ModelRequest(Operation.COMPLETION, b'{"prompt": "as it is"}'))
    await model.close()

    assert answer["choices"][0]["message"]["content"] == "<user>Hello<bot>"
    assert answer["model"] == "adapter"
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in streamed) == "<user>Hello<bot>"
    assert response_json(completed)["choices"][0]["text"] == "as it is"
    assert underlying.asked[0][0].stop == ["<end>"]
    assert underlying.asked[0][1]["headers"]["x-a"] == "b"
    assert underlying.life == ["load", "stop"]


async def test_an_adapter_in_python_finds_tool_calls() -> None:
    """Where it is told how the model writes them."""
    template = '{{ tools | length }}<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    model = await served(OpenAIChatAdapterModel("adapter", Completing(), chat_template=template, tool_calls={}))
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    choice = response_json(await _chat(model, tools=[tool]))["choices"][0]

    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}


async def test_an_adapter_may_complete_by_itself() -> None:
    """As KServe's is made: a subclass with both methods, the template asynchronous here."""

    class Both(OpenAIChatAdapterModel):
        async def apply_chat_template(self, request: Any) -> ChatPrompt:
            return ChatPrompt(prompt="a prompt", response_role="poet")

        async def create_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
            async def chunks() -> AsyncGenerator[Any]:
                yield {"choices": [{"index": 0, "text": request.prompt, "finish_reason": "length"}]}

            return chunks()

    model = await served(Both("both"))
    answer = response_json(await _chat(model))

    assert answer["choices"][0]["message"] == {"role": "poet", "content": "a prompt", "refusal": None}
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_a_model_of_two_owners_lives_until_the_last_one_ends() -> None:
    """Served by itself and through an adapter it is loaded once."""
    underlying = Completing()
    alone = await served(underlying)
    adapted = await served(OpenAIChatAdapterModel("adapter", underlying, chat_template=TEMPLATE))
    await adapted.close()
    await adapted.close()
    before = list(underlying.life)
    await alone.close()

    assert (before, underlying.life) == (["load"], ["load", "stop"])


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: OpenAIChatAdapterModel("a", chat_template=TEMPLATE), "nothing completes; give an underlying_model"),
        (lambda: OpenAIChatAdapterModel("a", 7), "a: a int completes nothing; give a model with create_completion or"),
        (lambda: OpenAIChatAdapterModel("a", Completing(), chat_template="{{"), "the chat template is wrong in line 1"),
        (lambda: OpenAIChatAdapterModel("a", Completing(), chat_template=TEMPLATE, max_tokens=0), "max_tokens: Input"),
    ],
)
def test_an_adapter_that_cannot_chat_is_not_made(make: Callable[[], object], fault: str) -> None:
    """The error says what is missing."""
    with pytest.raises(ApplianceError, match=fault):
        make()


async def test_invalid_response_is_a_gateway_error(upstream: Upstream) -> None:
    """Told by the place in it, without a word of what it said."""
    model = OpenAIProxyModel("mine", upstream.url)
    bridge = await served(model)
    upstream.on("/v1/chat/completions", json_answer({"choices": [{"text": "secret"}]}))
    with pytest.raises(GatewayError, match=r"is not a ChatCompletion: choices\.0\.message: Field required") as fault:
        await cast("Any", model).create_chat_completion(ChatCompletionRequest(**CHAT))
    await bridge.close()

    assert "secret" not in str(fault.value)
