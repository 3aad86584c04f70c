"""Embeddings as OpenAI's clients ask for them, and what is refused."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest
from server_process import ServerProcess

pytestmark = pytest.mark.slow

TEXT = "Paris is the capital of France."
LONG = "word " * 400


def _embed(server: ServerProcess, given: Any, **more: Any) -> tuple[int, Any]:  # Any: JSON values
    return server.post("/v1/embeddings", {"model": "minilm", "input": given, **more})


def test_numbers_and_base64_are_the_same_vector(server: ServerProcess, client: openai.OpenAI) -> None:
    """`float` is what `base64` decodes to, bit by bit, and OpenAI's client understands both."""
    _, floats = _embed(server, TEXT, encoding_format="float")
    _, coded = _embed(server, TEXT, encoding_format="base64")
    by_default = client.embeddings.create(model="minilm", input=TEXT)
    asked = client.embeddings.create(model="minilm", input=TEXT, encoding_format="float")

    numbers = floats["data"][0]["embedding"]
    decoded = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4")
    assert decoded.tolist() == numbers
    assert by_default.data[0].embedding == asked.data[0].embedding == numbers
    assert len(numbers) == 384
    assert np.linalg.norm(numbers) == pytest.approx(1, abs=1e-5)


def test_the_log_has_the_tokens_of_all_texts(server: ServerProcess) -> None:
    """What was encoded for one request adds up to its usage."""
    body = {"model": "minilm", "input": [TEXT, "Two words."]}

    _, answer = server.ask("/v1/embeddings", body, {"X-Request-Id": "tokens-embedding"})

    event = server.request_ended("tokens-embedding")
    assert event["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert "output_tokens" not in event


def test_each_form_of_input_gives_the_same_vector(server: ServerProcess) -> None:
    """A text, a list of texts, token ids, a list of lists of token ids."""
    _, tokenized = server.post("/tokenize", {"model": "minilm", "prompt": TEXT})

    answers = [_embed(server, form) for form in (TEXT, [TEXT], tokenized["tokens"], [tokenized["tokens"]])]

    assert {status for status, _ in answers} == {200}
    vectors = [answer["data"][0]["embedding"] for _, answer in answers]
    assert all(vector == pytest.approx(vectors[0], abs=1e-6) for vector in vectors)


def test_order_and_usage_are_those_of_the_input(server: ServerProcess) -> None:
    """Sixty texts of many lengths come back in their order, with the tokens counted that were computed."""
    texts = [f"{index} " * (1 + index % 7 * 5) for index in range(60)]

    status, together = _embed(server, texts)
    alone = [_embed(server, text)[1] for text in texts[::10]]

    assert status == 200
    assert [each["index"] for each in together["data"]] == list(range(60))
    for index, single in zip(range(0, 60, 10), alone, strict=True):
        assert together["data"][index]["embedding"] == pytest.approx(single["data"][0]["embedding"], abs=1e-5)
    _, counted = server.post("/tokenize", {"model": "minilm", "prompt": texts[10]})
    assert alone[1]["usage"] == {"prompt_tokens": counted["count"], "total_tokens": counted["count"]}


def test_truncation_is_asked_for_and_counted(server: ServerProcess) -> None:
    """`truncate_prompt_tokens` keeps that many tokens, -1 as many as fit; what was cut off costs nothing."""
    _, some = _embed(server, LONG, truncate_prompt_tokens=7)
    _, most = _embed(server, LONG, truncate_prompt_tokens=-1)

    assert some["usage"]["prompt_tokens"] == 7
    assert most["usage"]["prompt_tokens"] == 256


def test_many_callers_get_their_own_answers(server: ServerProcess) -> None:
    """Sixteen at once, each with texts of its own, get what each would get alone."""
    bodies = [[f"caller {caller} text {index}" for index in range(3)] for caller in range(16)]
    alone = [[each["embedding"] for each in _embed(server, body)[1]["data"]] for body in bodies]

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda body: _embed(server, body), bodies))

    assert {status for status, _ in together} == {200}
    ours = np.array([[each["embedding"] for each in answer["data"]] for _, answer in together])
    assert np.abs(ours - np.array(alone)).max() < 1e-5


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "input", "input is missing"),
        ({"input": []}, "input", "input is empty"),
        ({"input": ""}, "input", "input[0] is empty"),
        ({"input": [TEXT, ""]}, "input", "input[1] is empty"),
        ({"input": [[101], []]}, "input", "input[1] is empty"),
        ({"input": {"text": TEXT}}, "input", "input must be an array or a string"),
        ({"input": LONG}, "input", "maximum context length is 256 tokens"),
        ({"input": LONG * 500}, "input", "maximum context length is 256 tokens"),
        ({"input": [101] * 300}, "input", "maximum context length is 256 tokens"),
        ({"input": [101, 40000]}, "input", "Token id 40000 is out of vocabulary"),
        ({"input": [101, -1]}, "input", "Token id -1 is out of vocabulary"),
        ({"input": TEXT, "dimensions": 64}, "dimensions", "embeddings have 384 numbers"),
        ({"input": TEXT, "truncate_prompt_tokens": 999}, "truncate_prompt_tokens", "cannot be greater than"),
        ({"input": TEXT, "encoding_format": "bytes"}, "encoding_format", "must be float or base64"),
        ({"input": TEXT, "encoding_format": 7}, "encoding_format", "encoding_format must be one of"),
    ],
)
def test_what_cannot_be_embedded_is_refused(server: ServerProcess, body: Any, param: str, says: str) -> None:
    """It is 400 in OpenAI's shape, which names the field at fault, and the model answers on."""
    status, answer = server.post("/v1/embeddings", {"model": "minilm", **body})

    assert status == 400
    assert answer["error"]["param"] == param
    assert says in answer["error"]["message"]
    assert answer["error"]["code"] == ("context_length_exceeded" if "context length" in says else None)
    assert _embed(server, TEXT)[0] == 200


def test_other_operations_are_refused_with_what_there_is(server: ServerProcess) -> None:
    """A model that embeds neither chats nor classifies, and says what it does."""
    chat = {"model": "minilm", "messages": [{"role": "user", "content": "hi"}]}

    refused = [server.post("/v1/chat/completions", chat), server.post("/classify", {"model": "minilm", "input": TEXT})]

    assert [status for status, _ in refused] == [400, 400]
    assert all(
        "it supports: detokenize, embedding, pooling, rerank" in answer["error"]["message"] for _, answer in refused
    )


def test_pooling_answers_in_json_alone(server: ServerProcess) -> None:
    """`/pooling` gives the same vector, and refuses formats that no JSON can hold."""
    _, embedded = _embed(server, TEXT)

    status, pooled = server.post("/pooling", {"model": "minilm", "input": TEXT})
    refused, answer = server.post("/pooling", {"model": "minilm", "input": TEXT, "encoding_format": "bytes"})

    assert status == 200
    assert pooled["data"][0]["data"] == pytest.approx(embedded["data"][0]["embedding"], abs=1e-6)
    assert (refused, answer["error"]["param"]) == (400, "encoding_format")


def test_the_listing_says_what_the_model_is_for(server: ServerProcess) -> None:
    """`/v1/models` has the task, what it was chosen by, and the size of an embedding; the log has the choice too."""
    _, listing = server.get("/v1/models/minilm")
    chosen = [event for event in server.events() if event["event"] == "task.chosen"]

    assert (listing["task"], listing["dimensions"], listing["max_model_len"]) == ("embed", 384, 256)
    assert listing["task_source"] == "config.json: architecture BertModel"
    assert [(event["task"], event["source"]) for event in chosen] == [("embed", listing["task_source"])]
