"""Routes of vLLM's server and SageMaker's contract, over scripted models; who may use the dialects."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from auth_doubles import bearer_header
from dialects.conftest import USAGE, ScriptedConfig, ScriptedModel
from doubles import config
from inference_doubles import InferenceClient

from appliance.config.server import KeyConfig, ServerConfig
from appliance.core.model import DIALECT_PATHS, Operation

CHAT = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}}], "usage": USAGE}
HI = [{"role": "user", "content": "hi"}]
TALKER, LOOK = "talk-talk-talk-talk-talk", "look-look-look-look-look"
COUNTS, SHOWS = "counts-counts-counts-counts", "shows-shows-shows-shows"
KEYS = (
    KeyConfig(name="talker", value=TALKER, models=("two",), operations=(Operation.CHAT_COMPLETION,)),
    KeyConfig(name="look", value=LOOK, operations=()),
    KeyConfig(name="counts", value=COUNTS, operations=(Operation.TOKENIZE, Operation.DETOKENIZE)),
    KeyConfig(name="shows", value=SHOWS, models=("two",), operations=(Operation.TOKENIZER_INFO,)),
)


@pytest.fixture(scope="module")
async def keyed() -> AsyncGenerator[InferenceClient]:
    """Models with a key that may only chat, with `two`."""
    models = (ScriptedConfig(name="one"), ScriptedConfig(name="two"))
    async with InferenceClient(config(*models, server=ServerConfig(api_keys=KEYS))) as client:
        yield await client.wait_until_ready()
        await client.manager.stop()


@pytest.mark.parametrize("prefix", ["", "/openai"])
async def test_several_chats_are_one_completion(client: InferenceClient, model: ScriptedModel, prefix: str) -> None:
    """One choice for each conversation, in their order, and all tokens; other fields are for every one."""
    model.answers[Operation.CHAT_COMPLETION] = CHAT
    body: dict[str, Any] = {"model": "org/uno", "messages": [HI, [{"role": "user", "content": "you"}]], "seed": 3}

    answer = (await client.post(f"{prefix}/v1/chat/completions/batch", json=body)).json()

    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"] == {name: 2 * count for name, count in USAGE.items()}
    assert (answer["model"], answer["object"]) == ("org/uno", "chat.completion")
    assert model.bodies == [{**body, "messages": messages} for messages in body["messages"]]


@pytest.mark.parametrize(
    ("fields", "says"), [({"stream": True}, "stream"), ({"n": 2}, "n out"), ({"messages": HI}, "messages")]
)
async def test_a_batch_that_cannot_be_answered_is_told_why(
    client: InferenceClient, fields: dict[str, Any], says: str
) -> None:
    """400, in OpenAI's format."""
    answer = await client.post("/v1/chat/completions/batch", json={"model": "one", "messages": [HI], **fields})

    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


async def test_text_in_the_middle_is_completed(client: InferenceClient, model: ScriptedModel) -> None:
    """As a chat completion, whole or streamed; each chunk has a choice, which editors read, and the last one usage."""
    model.answers[Operation.COMPLETION] = {"choices": [{"text": "b", "finish_reason": "stop"}], "usage": USAGE}
    ends = [{"choices": [{"text": "c", "finish_reason": "length"}]}, {"choices": [], "usage": USAGE}]
    model.chunks = [{"id": "1", "choices": [{"text": "b"}]}, *ends]
    body = {"model": "one", "prompt": "a", "suffix": "d", "stop": ["x"], "random_seed": 3}

    whole = (await client.post("/v1/fim/completions", json=body)).json()
    streamed = await client.post("/openai/v1/fim/completions", json={**body, "stream": True})

    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "b"}
    assert (whole["object"], whole["usage"]) == ("chat.completion", USAGE)
    *chunks, done = streamed.text.strip().split("\n\n")
    first, last = (json.loads(chunk.removeprefix("data: ")) for chunk in chunks)
    assert [each["choices"][0]["delta"]["content"] for each in (first, last)] == ["b", "c"]
    assert (first["object"], first["id"]) == ("chat.completion.chunk", "1")
    assert (last["choices"][0]["finish_reason"], last["usage"], done) == ("length", USAGE, "data: [DONE]")
    expected = {"model": "one", "prompt": "a", "suffix": "d", "stop": ["x"], "seed": 3}
    assert model.bodies == [expected, {**expected, "stream": True, "stream_options": {"include_usage": True}}]


async def test_load_counts_running_requests(client: InferenceClient) -> None:
    """None here; the version is the appliance's."""
    assert (await client.get("/load")).json() == {"server_load": 0}
    assert (await client.get("/version")).json().keys() == {"version"}


@pytest.mark.parametrize("query", ["?model=org/uno", ""])
async def test_the_tokenizer_of_a_model_is_shown(query: str) -> None:
    """Of the model that the parameter names, or of the only one."""
    async with InferenceClient(config(ScriptedConfig(name="one", aliases=("org/uno",)))) as client:
        await client.wait_until_ready()
        model: ScriptedModel = client.model("one")
        model.answers[Operation.TOKENIZER_INFO] = {"tokenizer_class": "Fast"}

        answer = await client.get(f"/tokenizer_info{query}")

        assert answer.json() == {"tokenizer_class": "Fast"}
        await client.manager.stop()


async def test_a_tokenizer_that_is_not_shown_is_404(
    client: InferenceClient, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the key of the config, and so is the name of no model."""
    monkeypatch.setattr(model, "operations", model.operations - {Operation.TOKENIZER_INFO})

    refused = await client.get("/tokenizer_info?model=one")
    unknown = await client.get("/tokenizer_info?model=three")

    assert (refused.status_code, unknown.status_code) == (404, 404)
    assert "engine.serving.enable_tokenizer_info_endpoint" in refused.json()["error"]["message"]
    assert "three" in unknown.json()["error"]["message"]


async def test_a_tokenizer_needs_a_permission_of_its_own(keyed: InferenceClient) -> None:
    """That to use the tokenizer is not enough, and the API's document shows the route to no other key."""
    seen = {}
    for key in (COUNTS, SHOWS):
        answers = [
            await keyed.get(path, headers=bearer_header(key))
            for path in ("/tokenizer_info?model=one", "/tokenizer_info?model=two", "/schema/openapi.json")
        ]
        seen[key] = [answer.status_code for answer in answers], "/tokenizer_info" in answers[-1].json()["paths"]

    assert seen[COUNTS] == ([403, 403, 200], False)
    # The key is not for the model `one`; `two` shows nothing, because the test gives it no script.
    assert seen[SHOWS] == ([404, 400, 200], True)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_ping_is_readiness(client: InferenceClient, method: str) -> None:
    """By every method that a platform uses."""
    assert (await client.request(method, "/ping")).status_code == 200


@pytest.mark.parametrize(
    ("body", "operation"),
    [
        ({"messages": HI}, Operation.CHAT_COMPLETION),
        ({"prompt": "a"}, Operation.COMPLETION),
        ({"input": "a"}, Operation.EMBEDDING),
        ({"query": "a", "documents": ["b"]}, Operation.RERANK),
        ({"queries": "a", "documents": ["b"]}, Operation.SCORE),
        ({"text_1": "a", "text_2": "b"}, Operation.SCORE),
    ],
)
async def test_the_body_of_an_invocation_decides_the_operation(
    client: InferenceClient, model: ScriptedModel, body: dict[str, Any], operation: Operation
) -> None:
    """The model gets the body as its own route would pass it on."""
    model.answers[operation] = {"answer": operation}

    answer = await client.post("/invocations", json={"model": "one", **body})

    assert answer.json() == {"answer": operation}
    assert model.bodies == [{"model": "one", **body}]
    assert model.paths == [""]


async def test_an_invocation_may_be_streamed(client: InferenceClient, model: ScriptedModel) -> None:
    """As the stream of its own route."""
    model.chunks = [{"choices": []}]

    answer = await client.post("/invocations", json={"model": "one", "messages": HI, "stream": True})

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == 'data: {"choices": []}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize("body", [b"{}", b"[]", b"{", b'{"model": 3, "prompt": "a"}', b'{"inputs": {}}'])
async def test_an_invocation_of_no_request_is_refused(client: InferenceClient, body: bytes) -> None:
    """400, whatever is wrong with it."""
    answer = await client.post("/invocations?model=one", content=body)

    assert answer.status_code == 400


@pytest.mark.parametrize(
    "path",
    [*DIALECT_PATHS, "/tokenizer_info", "/load", "/version", "/info", "/api/tags", "/api/ps", "/api/version"],
)
async def test_every_route_needs_a_key(keyed: InferenceClient, path: str) -> None:
    """Each protocol's clients send one as a bearer token; `/ping` alone is open."""
    method = "POST" if path in DIALECT_PATHS else "GET"

    assert (await keyed.request(method, path)).status_code == 401
    assert (await keyed.request(method, path, headers={"authorization": "Bearer wrong"})).status_code == 401
    assert (await keyed.post("/ping")).status_code == 200


@pytest.mark.parametrize("path", [path for path, operations in DIALECT_PATHS.items() if operations])
async def test_a_key_without_the_operation_is_refused(keyed: InferenceClient, path: str) -> None:
    """Before the body is looked at."""
    answer = await keyed.post(path, content=b"{", headers=bearer_header(LOOK))

    assert answer.status_code == 403
    assert "operations" in answer.text


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/chat", {"model": "two", "messages": HI}, 400),
        ("/api/chat", {"model": "one", "messages": HI}, 404),
        ("/api/generate", {"model": "two", "prompt": "a", "raw": True}, 403),
        ("/invocations", {"model": "two", "input": "a"}, 403),
        ("/invocations", {"model": "two", "inputs": "a"}, 403),
        ("/invocations", {"model": "one", "messages": HI}, 404),
        ("/v1/chat/completions/batch", {"model": "one", "messages": [HI]}, 404),
        ("/api/show", {"model": "one"}, 404),
        ("/api/show", {"model": "two"}, 200),
    ],
)
async def test_a_key_gets_its_own_models_and_operations_only(
    keyed: InferenceClient, path: str, body: dict[str, Any], status: int
) -> None:
    """Where the path takes several operations, the one that the body asks for counts."""
    answer = await keyed.post(path, json={**body, "stream": False}, headers=bearer_header(TALKER))

    assert answer.status_code == status


async def test_listings_show_only_the_models_of_a_key(keyed: InferenceClient) -> None:
    """In every dialect, and so does the API's document."""
    headers = bearer_header(TALKER)

    tags = (await keyed.get("/api/tags", headers=headers)).json()
    info = await keyed.get("/info", params={"model": "one"}, headers=headers)
    paths = (await keyed.get("/schema/openapi.json", headers=headers)).json()["paths"]

    assert [each["model"] for each in tags["models"]] == ["two"]
    assert info.status_code == 404
    assert "/api/chat" in paths
    assert "/v2/embed" not in paths


@pytest.mark.parametrize("path", [*DIALECT_PATHS, "/ping"])
async def test_pages_of_other_origins_may_not_send_requests(client: InferenceClient, path: str) -> None:
    """As on every route of a server without keys; a probe tells them its status."""
    answer = await client.post(path, json={"model": "one"}, headers={"origin": "https://evil.example"})

    assert answer.status_code == (200 if path == "/ping" else 403)
