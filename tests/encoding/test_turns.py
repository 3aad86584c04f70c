"""Requests of thousands of texts beside those of one, on a real encoder."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from server_process import ServerProcess, wait_until

pytestmark = pytest.mark.slow

MOST = 2048
MANY = 1000
TEXT = "Paris is the capital of France, and Berlin that of Germany. " * 4


def _texts(count: int) -> list[str]:
    return [f"{index} {TEXT}" for index in range(count)]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": _texts(MANY), "encoding_format": "base64"}),
        pytest.param(
            "/v1/rerank",
            {"query": "Paris", "documents": _texts(MANY), "return_documents": False},
            marks=pytest.mark.long,
        ),
    ],
)
def test_single_texts_overtake_a_request_of_thousands(server: ServerProcess, path: str, body: dict[str, Any]) -> None:
    """They come while it is computed, and are answered before it is."""
    name = path.rpartition("/")[2]
    with ThreadPoolExecutor(1) as threads:
        large = threads.submit(server.ask, path, {"model": "minilm", **body}, {"X-Request-Id": f"large-{name}"})
        wait_until(lambda: server.get("/readyz")[1]["models"][0]["running"] == 1, 60)
        for index in range(3):
            status, _ = server.ask(
                "/v1/embeddings", {"model": "minilm", "input": TEXT}, {"X-Request-Id": f"single-{name}-{index}"}
            )
            assert status == 200
        was_under_way = not large.done()
        status, answer = large.result()

    assert was_under_way
    assert (status, len(answer["data"] if "data" in answer else answer["results"])) == (200, MANY)
    # A rerank computes its query too.
    assert server.request_ended(f"large-{name}")["sequences"] in (MANY, MANY + 1)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {"input": ["a"] * (MOST + 1)}, "input"),
        ("/v1/pooling", {"input": ["a"] * (MOST + 1)}, "input"),
        ("/v1/rerank", {"query": "a", "documents": ["a"] * (MOST + 1)}, "documents"),
        ("/v1/score", {"text_1": "a", "text_2": ["a"] * (MOST + 1)}, "text_2"),
    ],
)
def test_more_texts_than_a_request_may_have_are_400(
    server: ServerProcess, path: str, body: dict[str, Any], param: str
) -> None:
    """OpenAI's own bound, unless the file has another."""
    status, answer = server.post(path, {"model": "minilm", **body})

    assert (status, answer["error"]["param"]) == (400, param)
    assert f"at most {MOST}" in answer["error"]["message"]


def test_a_tensor_of_too_many_texts_is_400_in_its_own_protocol(server: ServerProcess) -> None:
    """The bound holds however the texts come."""
    count = MOST + 1
    tensor = {"name": "text", "datatype": "BYTES", "shape": [count], "data": ["a"] * count}

    status, answer = server.post("/v2/models/minilm/infer", {"inputs": [tensor]})

    assert status == 400
    assert f"at most {MOST}" in answer["error"]


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_megabytes_are_not_tokenized_in_one_request(server: ServerProcess, path: str) -> None:
    """They are 413, at once, and the message says what bounds them."""
    body = {"prompt": "word " * 300_000} if path == "/tokenize" else {"tokens": [7592] * 300_000}

    status, answer = server.post(path, {"model": "minilm", **body})

    assert status == 413
    assert "limits.tokenizer_bytes" in answer["error"]["message"]
