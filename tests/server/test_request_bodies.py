"""What is read of a body before a model gets it: a byte order mark, and the request's id."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from inference_doubles import InferenceClient, operation_doubles

MARK = b"\xef\xbb\xbf"
CHAT = "/v1/chat/completions"
COHERE = {"model": "embedder", "texts": ["hi"], "embedding_types": ["float"], "input_type": "search_query"}
TEXT = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["hi"]}


@pytest.fixture
async def client() -> AsyncGenerator[InferenceClient]:
    """An application with a model of each kind."""
    async with InferenceClient(operation_doubles()) as client:
        yield await client.wait_until_ready()
        await client.manager.stop()


def _chat(**members: object) -> bytes:
    return json.dumps({"model": "talker", "messages": [{"role": "user", "content": "hi"}], **members}).encode()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, _chat()),
        (
            "/v2/embed",
            b'{"model": "embedder", "texts": ["hi"], "embedding_types": ["float"], "input_type": "search_query"}',
        ),
        ("/v1/embeddings", b'{"model": "embedder", "input": ["hi"]}'),
        ("/v1/models/echo:predict", b'{"instances": [[1]]}'),
        ("/v2/models/embedder/infer", json.dumps({"inputs": [TEXT]}).encode()),
        ("/v2/models/talker/generate", b'{"text_input": "hi"}'),
    ],
)
async def test_a_byte_order_mark_is_no_part_of_the_body(client: InferenceClient, path: str, body: bytes) -> None:
    """Some programs write it before JSON; the answer is the same."""
    plain, marked = await client.post(path, content=body), await client.post(path, content=MARK + body)

    assert plain.status_code == marked.status_code == 200, marked.text
    assert _without_ids(plain.json()) == _without_ids(marked.json())


def _without_ids(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in {"id", "created"}}


async def test_the_id_of_the_body_is_the_ids_of_the_request(client: InferenceClient) -> None:
    """The answer and the model's headers have it, unless a header names the request."""
    named = await client.post(CHAT, content=_chat(request_id="mine-4711"))
    both = await client.post(CHAT, content=_chat(request_id="mine-4711"), headers={"X-Request-Id": "first"})

    assert (named.headers["X-Request-Id"], both.headers["X-Request-Id"]) == ("mine-4711", "first")
    assert [call.headers["x-request-id"] for call in client.model("talker").calls] == ["mine-4711", "first"]


@pytest.mark.parametrize("request_id", ["", "x" * 129, "two\nlines", "two words", "é", 5, ["a"]])
async def test_a_harmful_id_of_the_body_is_refused(client: InferenceClient, request_id: object) -> None:
    """It could break a log or a header, or is endless."""
    answer = await client.post(CHAT, content=_chat(request_id=request_id))

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "request_id"
    assert client.model("talker").calls == []


async def test_no_client_chooses_the_id_of_a_response(client: InferenceClient) -> None:
    """Responses are found by their id, so the model does not get one."""
    body = {"model": "everything", "input": ["hi"], "request_id": "resp_theirs"}
    answer = await client.post("/v1/responses", json=body)

    assert answer.headers["X-Request-Id"] == "resp_theirs"
    (call,) = client.model("everything").calls
    assert json.loads(call.body) == {"model": "everything", "input": ["hi"]}
