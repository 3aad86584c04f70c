"""The classes of `appliance.openai` as their documentation has them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from python_api.model_requests import CHAT, load_model

from appliance.core.model import ModelRequest, Operation
from appliance.core.request_context import use_context
from appliance.openai import OpenAIEncoderModel, OpenAIGenerativeModel, OpenAIModel, RawRequest
from appliance.openai.types import ChatCompletion, Embedding, ErrorResponse, Rerank
from appliance.python_api.responses import InvalidResultError


@pytest.mark.parametrize("class_", [OpenAIModel, OpenAIGenerativeModel, OpenAIEncoderModel])
def test_a_class_that_overrides_nothing_is_abstract(class_: type[OpenAIModel]) -> None:
    """And so is a subclass of it."""

    class Nothing(class_):  # type: ignore[misc,valid-type]  # a parameter
        pass

    for each in (class_, Nothing):
        with pytest.raises(TypeError, match=f"{each.__name__} is abstract: it must override one of create_chat"):
            each("name")


def test_responses_can_be_read_as_dicts() -> None:
    """And by attribute."""
    message = {"role": "assistant", "content": "hi"}
    completion = ChatCompletion(
        choices=[{"message": message, "mine": 1}],
        usage={"total_tokens": 7},
    )
    embedding = Embedding(data=[{"index": 0, "embedding": [1.0]}])
    choice = completion.choices[0]

    assert completion.usage is not None
    assert (choice["message"]["content"], choice.message.content, choice["mine"]) == ("hi", "hi", 1)
    assert (completion.usage["total_tokens"], completion["usage"].get("cost", 0)) == (7, 0)
    assert (embedding.data[0]["embedding"], dict(embedding.data[0])["index"]) == ([1.0], 0)
    assert ErrorResponse(message="no").error["message"] == "no"
    assert "absent" not in choice
    with pytest.raises(KeyError):
        choice["absent"]


def test_rerank_takes_data() -> None:
    """Besides `results`; the response has `results`, as vLLM's and Jina's do."""
    rerank = Rerank(object="list", data=[{"index": 0, "relevance_score": 0.5}], model="m")

    assert rerank.data[0]["relevance_score"] == rerank.results[0].relevance_score == 0.5
    assert json.loads(rerank.model_dump_json())["results"] == [{"index": 0, "relevance_score": 0.5}]


class Asking(OpenAIGenerativeModel):
    """Keeps the request as HTTP has it, and sets headers of the response."""

    def __init__(self, **headers: str) -> None:
        super().__init__("asking")
        self.headers = headers
        self.raw: RawRequest | None = None

    async def create_chat_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
        self.raw = raw_request
        context["response"].headers.update(self.headers)
        return {"choices": []}


async def test_raw_request_has_what_starlettes_has() -> None:
    """Its names, as far as models use them."""
    model = Asking()
    adapter = await load_model(model)
    headers = {"host": "here:8080", "cookie": "a=b; c=d", "x-tenant": "blue"}
    body = json.dumps(CHAT).encode()
    with use_context("7") as context:
        context.method, context.scheme, context.client = "POST", "https", ("10.0.0.1", 4321)
        await adapter.handle(
            ModelRequest(Operation.CHAT_COMPLETION, body, headers, "/v1/chat/completions", "a=1&b=x%20y")
        )

    raw = model.raw
    assert raw is not None
    assert str(raw.url) == "https://here:8080/v1/chat/completions?a=1&b=x%20y"
    assert (raw.method, raw.headers["X-Tenant"], dict(raw.query_params)) == ("POST", "blue", {"a": "1", "b": "x y"})
    assert raw.client is not None
    assert (raw.client.host, raw.client.port) == ("10.0.0.1", 4321)
    assert raw.cookies == {"a": "b", "c": "d"}
    assert (await raw.body(), await raw.json(), await raw.is_disconnected()) == (body, CHAT, False)
    raw.state.seen = True
    assert raw.state.seen


async def test_headers_of_the_context_are_sent() -> None:
    """With the response."""
    adapter = await load_model(Asking(**{"X-Model": "one"}))
    response = await adapter.handle(ModelRequest(Operation.CHAT_COMPLETION, json.dumps(CHAT).encode()))

    assert response.headers == {"x-model": "one"}


async def test_headers_that_are_none_are_the_models_error() -> None:
    """They could not be sent."""
    adapter = await load_model(Asking(**{"x-model": "a\nb"}))
    with pytest.raises(InvalidResultError, match="the model set the response header 'x-model'"):
        await adapter.handle(ModelRequest(Operation.CHAT_COMPLETION, json.dumps(CHAT).encode()))
