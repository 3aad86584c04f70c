"""Ollama's API over scripted models."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dialects.conftest import USAGE, ScriptedModel, embeddings
from inference_doubles import InferenceClient

from appliance.config.models import GenerativeConfig
from appliance.core.errors import EngineDeadError
from appliance.core.model import Operation

MESSAGES = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def _chat(content: str | None = "Hello", reason: str = "stop", **message: Any) -> Any:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": reason}
    return {"choices": [choice], "usage": USAGE}


def _delta(reason: str | None = None, **delta: Any) -> Any:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


async def _ask(client: InferenceClient, path: str, **body: Any) -> Any:
    answer = await client.post(path, json={"model": "one", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def _lines(client: InferenceClient, path: str, **body: Any) -> list[Any]:
    answer = await client.post(path, json={"model": "one", **body})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_a_chat_is_answered_whole(client: InferenceClient, model: ScriptedModel) -> None:
    """With counts of tokens, durations in nanoseconds, and why it ended."""
    model.answers[Operation.CHAT_COMPLETION] = _chat("Hello", "length", reasoning="hm")

    answer = await _ask(client, "/api/chat", messages=MESSAGES, stream=False)

    assert answer["message"] == {"role": "assistant", "content": "Hello", "thinking": "hm"}
    assert (answer["model"], answer["done"], answer["done_reason"]) == ("one", True, "length")
    assert (answer["prompt_eval_count"], answer["eval_count"], answer["load_duration"]) == (7, 2, 0)
    assert answer["total_duration"] >= answer["eval_duration"] > 0
    assert model.bodies == [{"model": "one", "messages": MESSAGES}]


async def test_a_chat_is_streamed_by_default(client: InferenceClient, model: ScriptedModel) -> None:
    """An object on each line; thinking has a field of its own, and the last line has the counts."""
    model.chunks = [
        _delta(role="assistant", content=""),
        _delta(reasoning_content="hm"),
        _delta(content="Hel"),
        _delta(content="lo"),
        _delta("stop"),
        {"choices": [], "usage": USAGE},
    ]

    *parts, last = await _lines(client, "/api/chat", messages=MESSAGES)

    assert [part["message"] for part in parts] == [
        {"role": "assistant", "content": "", "thinking": "hm"},
        {"role": "assistant", "content": "Hel"},
        {"role": "assistant", "content": "lo"},
    ]
    assert not any(part["done"] for part in parts)
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "stop", 2)
    assert model.bodies[0]["stream_options"] == {"include_usage": True}


async def test_tool_calls_are_whole_objects(client: InferenceClient, model: ScriptedModel) -> None:
    """Though the model's stream has their arguments as text in pieces; what the model did not finish is text."""
    first = {"index": 0, "id": "a", "function": {"name": "weather", "arguments": ""}}
    more = [{"index": 0, "function": {"arguments": text}} for text in ('{"city": ', '"Paris"}')]
    cut = {"index": 1, "id": "b", "function": {"name": "time", "arguments": '{"zone'}}
    model.chunks = [_delta(tool_calls=[each]) for each in (first, *more, cut)] + [_delta("tool_calls")]

    *_, calls, last = await _lines(client, "/api/chat", messages=MESSAGES, tools=[TOOL])

    function = {"index": 0, "name": "weather", "arguments": {"city": "Paris"}}
    assert calls["message"] == {
        "role": "assistant",
        "content": 'time({"zone)',
        "tool_calls": [{"id": "a", "function": function}],
    }
    assert last["done_reason"] == "stop"
    assert model.bodies[0]["tools"] == [TOOL]


async def test_results_of_tools_find_their_calls(client: InferenceClient, model: ScriptedModel) -> None:
    """Calls have no ids there; results name the tool, or come in the order of the calls."""
    model.answers[Operation.CHAT_COMPLETION] = _chat()
    calls = [{"function": {"name": name, "arguments": {"n": 1}}} for name in ("a", "b", "b")]
    results = [{"role": "tool", "tool_name": "b", "content": "first b"}, {"role": "tool", "content": "a"}]

    messages = [*MESSAGES, {"role": "assistant", "tool_calls": calls}, *results]
    await _ask(client, "/api/chat", messages=messages, stream=False)
    _, assistant, *told = model.bodies[0]["messages"]
    orphan = await client.post("/api/chat", json={"model": "one", "messages": results})

    assert [call["function"] for call in assistant["tool_calls"]] == [
        {"name": name, "arguments": '{"n":1}'} for name in ("a", "b", "b")
    ]
    ids = [call["id"] for call in assistant["tool_calls"]]
    assert [each["tool_call_id"] for each in told] == [ids[1], ids[0]]
    assert orphan.status_code == 400
    assert "follows no call" in orphan.json()["error"]


async def test_images_become_parts(client: InferenceClient, model: ScriptedModel) -> None:
    """As data URIs with the type that their first bytes show."""
    model.answers[Operation.CHAT_COMPLETION] = _chat()

    await _ask(client, "/api/generate", prompt="What?", images=["/9j/AA"], stream=False)

    image = {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/AA"}}
    assert model.bodies[0]["messages"][0]["content"] == [{"type": "text", "text": "What?"}, image]


async def test_options_become_fields(client: InferenceClient, model: ScriptedModel) -> None:
    """Those with a field of the same meaning; those of loading have no effect, nor have neutral ones."""
    model.answers[Operation.CHAT_COMPLETION] = _chat()
    taken = {"temperature": 0.5, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "seed": 3, "stop": ["x"]}
    options = {**taken, "num_predict": 9, "repeat_penalty": 1.1, "num_ctx": 4096, "num_gpu": 1, "mirostat": 0}

    await _ask(client, "/api/chat", messages=MESSAGES, options=options, stream=False)
    await _ask(client, "/api/chat", messages=MESSAGES, options={"num_predict": -1}, stream=False)

    base = {"model": "one", "messages": MESSAGES}
    assert model.bodies[0] == {**base, **taken, "max_tokens": 9, "repetition_penalty": 1.1}
    assert model.bodies[1] == base


async def test_options_of_open_webui_are_taken(client: InferenceClient, model: ScriptedModel) -> None:
    """It adds fields of OpenAI, as text where its users type them; an empty one is none."""
    model.answers[Operation.CHAT_COMPLETION] = _chat()
    model.answers[Operation.COMPLETION] = {"choices": [{"text": "a", "finish_reason": "stop"}], "usage": USAGE}
    typed = {"logit_bias": "5432:100, 413:-1.5", "reasoning_effort": "low", "repeat_last_n": 64, "mirostat": 2}
    empty = {"logit_bias": "", "reasoning_effort": "", "presence_penalty": 0}

    for options in (typed, empty, {"logit_bias": {"1": 2}}):
        await _ask(client, "/api/chat", messages=MESSAGES, options=options, stream=False)
    await _ask(client, "/api/generate", prompt="a", raw=True, options=typed, stream=False)

    chat = {"model": "one", "messages": MESSAGES}
    bias = {"5432": 100, "413": -1.5}
    assert model.bodies == [
        {**chat, "logit_bias": bias, "reasoning_effort": "low"},
        {**chat, "presence_penalty": 0},
        {**chat, "logit_bias": {"1": 2}},
        {"model": "one", "prompt": "a", "logit_bias": bias},
    ]


async def test_format_and_thinking_become_fields(client: InferenceClient, model: ScriptedModel) -> None:
    """JSON, a JSON schema, and an effort."""
    model.answers[Operation.CHAT_COMPLETION] = _chat()
    schema = {"type": "object"}

    await _ask(client, "/api/chat", messages=MESSAGES, format="json", think=False, stream=False)
    await _ask(client, "/api/chat", messages=MESSAGES, format=schema, think="high", stream=False)

    assert model.bodies[0]["response_format"] == {"type": "json_object"}
    assert model.bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert model.bodies[1]["response_format"]["json_schema"] == {"name": "format", "schema": schema}
    assert model.bodies[1]["reasoning_effort"] == "high"


async def test_text_is_generated_as_a_chat_or_raw(client: InferenceClient, model: ScriptedModel) -> None:
    """A prompt is a message, after the system's; a raw one is completed as it is, and so is one with a suffix."""
    model.answers[Operation.CHAT_COMPLETION] = _chat()
    model.answers[Operation.COMPLETION] = {"choices": [{"text": " world", "finish_reason": "stop"}], "usage": USAGE}
    model.chunks = [{"choices": [{"text": " wo"}]}, {"choices": [{"text": "rld", "finish_reason": "stop"}]}]

    chat = await _ask(client, "/api/generate", prompt="hi", system="Be nice.", stream=False)
    raw = await _ask(client, "/api/generate", prompt="hello", raw=True, stream=False)
    await _ask(client, "/api/generate", prompt="hello", suffix="!", stream=False)
    lines = await _lines(client, "/api/generate", prompt="hello", raw=True)

    assert (chat["response"], raw["response"]) == ("Hello", " world")
    assert [line["response"] for line in lines] == [" wo", "rld", ""]
    assert model.bodies[0]["messages"] == [{"role": "system", "content": "Be nice."}, *MESSAGES]
    assert model.bodies[1] == {"model": "one", "prompt": "hello"}
    assert model.bodies[2] == {"model": "one", "prompt": "hello", "suffix": "!"}


async def test_log_probabilities_are_passed_on(client: InferenceClient, model: ScriptedModel) -> None:
    """Of each token, with the likeliest others."""
    scores = [{"token": "Hello", "logprob": -0.5, "bytes": [72], "top_logprobs": []}]
    completion = _chat()
    completion["choices"][0]["logprobs"] = {"content": scores}
    model.answers[Operation.CHAT_COMPLETION] = completion

    answer = await _ask(client, "/api/chat", messages=MESSAGES, logprobs=True, top_logprobs=2, stream=False)

    assert answer["logprobs"] == scores
    assert (model.bodies[0]["logprobs"], model.bodies[0]["top_logprobs"]) == (True, 2)


async def test_a_request_without_a_prompt_says_whether_the_model_is_loaded(client: InferenceClient) -> None:
    """Clients load a model so; unloading is for operators."""
    (chat,) = await _lines(client, "/api/chat")
    prompt = await _ask(client, "/api/generate", stream=False)
    unload = await client.post("/api/generate", json={"model": "one", "keep_alive": 0})

    assert (chat["message"]["content"], chat["done_reason"]) == ("", "load")
    assert (prompt["response"], prompt["done"]) == ("", True)
    assert unload.status_code == 400
    assert "/unload" in unload.json()["error"]


async def test_texts_are_embedded(client: InferenceClient, model: ScriptedModel) -> None:
    """With length 1, or by the older route as the model gives them."""
    model.answers[Operation.EMBEDDING] = embeddings([3.0, 4.0])

    newer = await _ask(client, "/api/embed", input="a", dimensions=2)
    older = await _ask(client, "/api/embeddings", prompt="a", options={"num_ctx": 10})

    assert (newer["embeddings"], newer["prompt_eval_count"], newer["model"]) == ([[0.6, 0.8]], 7, "one")
    assert older == {"embedding": [3.0, 4.0]}
    assert model.bodies[0] == {"model": "one", "input": ["a"], "dimensions": 2}


@pytest.mark.parametrize("name", ["one:latest", "org/uno", "org/uno:latest"])
async def test_the_tag_latest_may_be_sent(client: InferenceClient, model: ScriptedModel, name: str) -> None:
    """It is what its clients add to names; the response has the name that was sent."""
    model.answers[Operation.CHAT_COMPLETION] = _chat()

    answer = await _ask(client, "/api/chat", model=name, messages=MESSAGES, stream=False)

    assert answer["model"] == name


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/api/chat", {"messages": MESSAGES, "options": {"typical_p": 0.5}}, "options.typical_p"),
        ("/api/chat", {"messages": MESSAGES, "options": {"temprature": 1}}, "temprature does not exist"),
        ("/api/chat", {"messages": MESSAGES, "options": {"logit_bias": "5432"}}, "'5432:100, 413:-100'"),
        ("/api/chat", {"messages": MESSAGES, "options": {"repeat_last_n": 64, "repeat_penalty": 1.1}}, "repeat_last_n"),
        ("/api/chat", {"messages": MESSAGES, "format": "xml"}, "format"),
        ("/api/chat", {"messages": "hi"}, "messages"),
        ("/api/generate", {"prompt": "a", "suffix": "b", "system": "c"}, "suffix takes no"),
        ("/api/generate", {"prompt": "a", "template": "b"}, "chat_template"),
        ("/api/generate", {"prompt": "a", "context": [1]}, "/api/chat"),
        ("/api/generate", {"prompt": "a", "raw": True, "system": "b"}, "raw takes no"),
        ("/api/embed", {"input": 3}, "input"),
        ("/api/chat", {"model": "three", "messages": MESSAGES}, "one, org/uno, two"),
        ("/api/chat", {"model": "three:latest", "messages": MESSAGES}, "'three' does not exist"),
        ("/api/pull", {}, "add the model to models:"),
        ("/api/push", {}, "upload"),
        ("/api/create", {}, "add the model to models:"),
        ("/api/copy", {}, "alias"),
    ],
)
async def test_what_cannot_be_done_is_told(client: InferenceClient, path: str, body: dict[str, Any], says: str) -> None:
    """4xx with the remedy, in its format."""
    answer = await client.post(path, json={"model": "one", **body})

    assert answer.status_code == (404 if "three" in str(body) else 400)
    assert answer.json().keys() == {"error"}
    assert says in answer.json()["error"]


async def test_deleting_a_model_is_refused(client: InferenceClient) -> None:
    """The config has the models."""
    answer = await client.request("DELETE", "/api/delete", json={"model": "one"})

    assert answer.status_code == 400
    assert "remove the model from the config" in answer.json()["error"]


async def test_an_error_in_a_stream_is_its_last_line(client: InferenceClient, model: ScriptedModel) -> None:
    """The status is sent already."""
    model.chunks = [_delta(content="Hel"), EngineDeadError("the engine died")]

    first, last = await _lines(client, "/api/chat", messages=MESSAGES)

    assert first["message"]["content"] == "Hel"
    assert last["error"].startswith("The model failed on this request")


async def test_models_are_listed_and_described(client: InferenceClient, model: ScriptedModel) -> None:
    """Under all their names, with what they can do."""
    model.facts = {"max_model_len": 8, "dimensions": 3}

    tags, running = (await client.get("/api/tags")).json(), (await client.get("/api/ps")).json()
    shown = await _ask(client, "/api/show", model="one:latest")
    version = (await client.get("/api/version")).json()

    assert [each["model"] for each in tags["models"]] == ["one", "org/uno", "two"]
    assert [each["name"] for each in running["models"]] == ["one", "org/uno", "two"]
    assert running["models"][0]["context_length"] == 8
    assert shown["capabilities"] == ["completion", "tools", "embedding"]
    architecture = shown["model_info"]["general.architecture"]
    assert shown["model_info"][f"{architecture}.context_length"] == 8
    assert shown["model_info"][f"{architecture}.embedding_length"] == 3
    # Codex takes no older one.
    assert tuple(map(int, version["version"].split("."))) >= (0, 13, 4)


async def test_thinking_needs_a_parser(client: InferenceClient) -> None:
    """Without one, the model's thinking would be part of its text."""
    status = client.manager.find("one")
    config = status.config
    status.config = GenerativeConfig(**{"name": "one", "class": "generative", "storage": {"uri": "pypi://a==1/b"}})
    try:
        answer = await client.post("/api/chat", json={"model": "one", "messages": MESSAGES, "think": True})
        shown = await _ask(client, "/api/show")
    finally:
        status.config = config

    assert answer.status_code == 400
    assert "reasoning_parser" in answer.json()["error"]
    assert shown["capabilities"] == ["completion", "embedding"]
