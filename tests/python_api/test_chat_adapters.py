"""Chat over whatever turns a prompt into text."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from python_api.model_requests import events, response_json, send

from appliance import Model as TensorModel
from appliance.core.errors import LoadError, RequestError
from appliance.openai import ChatPrompt, OpenAIChatAdapterModel, OpenAIGenerativeModel
from appliance.python_api.responses import InvalidResultError

MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
PLAIN = "system: Be kind.\nuser: Hello\nassistant:"


class Echo(OpenAIGenerativeModel):
    """Completes a prompt with itself."""

    async def create_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
        return {"choices": [{"text": request.prompt, "finish_reason": "stop"}]}


class Predictor(TensorModel):
    """Predicts the text of the only instance, in brackets."""

    def preprocess(self, payload: Any, headers: Any = None) -> Any:
        return payload["instances"], payload.get("parameters", {})

    def predict(self, payload: Any, headers: Any = None) -> Any:
        (text,), parameters = payload
        return {"predictions": [f"<{text}|{json.dumps(parameters, sort_keys=True)}>"]}


class Generator:
    """Has `generate`, with some of a request's fields."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def generate(self, prompt: str, max_tokens: int = 16, temperature: float = 1.0) -> str:
        self.asked = {"max_tokens": max_tokens, "temperature": temperature}
        return prompt


async def generate_pieces(prompt: str) -> AsyncGenerator[str]:
    """Yield the words of a prompt."""
    for word in prompt.split():
        yield word


def plain_pieces(prompt: str) -> Iterator[str]:
    """Yield the words of a prompt."""
    yield from prompt.split()


async def chat(underlying: object, **body: Any) -> str:
    """The answer to the messages."""
    reply = response_json(await send(OpenAIChatAdapterModel("adapter", underlying), **{"messages": MESSAGES, **body}))
    assert reply["choices"][0]["message"]["role"] == "assistant"
    return str(reply["choices"][0]["message"]["content"])


@pytest.mark.parametrize("underlying", [Echo("echo"), Generator(), lambda prompt: prompt])
async def test_messages_become_a_plain_prompt(underlying: object) -> None:
    """Where the model has no chat template."""
    assert await chat(underlying) == PLAIN


async def test_a_model_of_predict_gets_one_instance() -> None:
    """Through its steps, with the fields of the request as parameters."""
    answer = await chat(Predictor("predictor"), top_p=0.5, max_tokens=7)

    assert answer == f'<{PLAIN}|{{"max_tokens": 7, "top_p": 0.5}}>'


async def test_a_function_gets_the_fields_that_it_has_parameters_for() -> None:
    """Others would break it."""
    generator = Generator()
    await chat(generator, max_tokens=3, temperature=0.5, top_p=0.5)

    assert generator.asked == {"max_tokens": 3, "temperature": 0.5}


@pytest.mark.parametrize("underlying", [generate_pieces, plain_pieces])
async def test_a_function_may_stream(underlying: Callable[[str], Any]) -> None:
    """Pieces of the text, whether the client wants a stream or not."""
    streamed = await events(await send(OpenAIChatAdapterModel("a", underlying), messages=MESSAGES, stream=True))
    pieces = [each["choices"][0]["delta"].get("content") for each in streamed if each["choices"]]

    assert [piece for piece in pieces if piece] == PLAIN.split()
    assert await chat(underlying) == "".join(PLAIN.split())


async def test_the_models_own_template_is_used() -> None:
    """Its attribute, or that of its tokenizer."""
    model, other = Echo("echo"), Echo("other")
    model.chat_template = "{{ messages[1].content }}?"  # type: ignore[attr-defined]  # as users set it
    other.tokenizer = SimpleNamespace(chat_template="{{ messages | length }}")  # type: ignore[attr-defined]  # likewise

    assert (await chat(model), await chat(other)) == ("Hello?", "2")


async def test_a_tokenizers_template_gets_its_special_tokens() -> None:
    """Which it writes out."""
    model = Echo("echo")
    tokenizer = SimpleNamespace(chat_template="{{ bos_token }}!", special_tokens_map={"bos_token": "<s>"})
    model.tokenizer = tokenizer  # type: ignore[attr-defined]  # as users set it

    assert await chat(model) == "<s>!"


async def test_the_template_among_the_models_files_is_used(tmp_path: Path) -> None:
    """Once they are there; without one, the plain one."""
    model, other = Echo("echo"), Echo("other")
    model.model_dir, other.model_dir = tmp_path / "model", tmp_path / "other"
    for directory in (model.model_dir, other.model_dir):
        directory.mkdir()
        (directory / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    (model.model_dir / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[1].content }}")

    assert (await chat(model), await chat(other)) == ("<s>Hello", PLAIN)


async def test_a_broken_template_among_the_files_stops_the_start(tmp_path: Path) -> None:
    """With its line."""
    model = Echo("echo")
    model.model_dir = tmp_path
    (tmp_path / "chat_template.jinja").write_text("{{ messages")
    with pytest.raises(LoadError, match="the chat template is wrong in line 1"):
        await chat(model)


@pytest.mark.parametrize("prompt", [ChatPrompt("assistant", "made"), "made"])
async def test_the_models_own_function_is_used(prompt: Any) -> None:
    """Which returns a prompt with a role, or a text."""
    model = Echo("echo")
    model.apply_chat_template = lambda _request: prompt  # type: ignore[attr-defined]  # as users set it

    assert await chat(model) == "made"


@pytest.mark.parametrize("underlying", [lambda _prompt: 7, lambda _prompt: None])
async def test_what_is_no_text_is_the_models_error(underlying: object) -> None:
    """With what it was."""
    with pytest.raises(InvalidResultError, match=r"the underlying model returned (a int|nothing); must be a text"):
        await chat(underlying)


async def test_several_choices_are_refused() -> None:
    """A function makes one text."""
    with pytest.raises(RequestError, match="n must be 1"):
        await chat(lambda prompt: prompt, n=2)


def test_a_chat_prompt_has_its_fields_in_the_documented_order() -> None:
    """A prompt alone would be taken for the role."""
    assert ChatPrompt("bot", "hello") == ChatPrompt(prompt="hello", response_role="bot")
    with pytest.raises(TypeError, match=r"ChatPrompt has no prompt; write it as ChatPrompt\(prompt=TEXT\)"):
        ChatPrompt("hello")
