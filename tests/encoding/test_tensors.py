"""Real encoders in the Open Inference Protocol: the same answers as in OpenAI's, and metadata that is true."""

from __future__ import annotations

import urllib.request
from typing import Any

import openai
import pytest
from server_process import ServerProcess

from appliance.tensors.codec import LENGTH_HEADER, read_response, write_request
from appliance.tensors.tensor import InferenceRequest, Tensor

TEXTS = ["The cat sits outside.", "It rains in Paris."]


def _asked(server: ServerProcess, model: str, inputs: dict[str, list[str]]) -> dict[str, Any]:
    tensors = [
        {"name": name, "shape": [len(texts)], "datatype": "BYTES", "data": texts} for name, texts in inputs.items()
    ]
    status, body = server.post(f"/v2/models/{model}/infer", {"inputs": tensors})
    assert status == 200, body
    return {each["name"]: each for each in body["outputs"]}


def _binary(server: ServerProcess, model: str, texts: list[str]) -> Tensor:
    inputs = [Tensor.of_values("text_input", "BYTES", (len(texts),), texts)]
    body, headers = write_request(InferenceRequest(inputs, parameters={"binary_data_output": True}))
    request = urllib.request.Request(f"{server.url}/v2/models/{model}/infer", body, headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return read_response(answer.read(), answer.headers[LENGTH_HEADER]).outputs[0]


@pytest.mark.slow
def test_embeddings_are_the_same_in_either_protocol(server: ServerProcess, client: openai.OpenAI) -> None:
    """To the last bit, as numbers and as bytes; the metadata says how many, and which bytes they come from."""
    name = client.models.list().data[0].id
    told = server.get(f"/v2/models/{name}")[1]
    vectors = [each.embedding for each in client.embeddings.create(model=name, input=TEXTS).data]

    numbers = _asked(server, name, {"text_input": TEXTS})["embedding"]
    raw = _binary(server, name, TEXTS)

    assert numbers["shape"] == [2, 384]
    assert told["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, 384]}]
    assert len(told["parameters"]["digest"]) == 64
    assert raw.values() == numbers["data"]
    assert numbers["data"] == pytest.approx([value for vector in vectors for value in vector], abs=1e-6)


@pytest.mark.slow
def test_scores_and_classes_are_the_same_in_either_protocol(heads_server: ServerProcess) -> None:
    """Documents keep their order, labels have their names, tokens their places."""
    ranked = heads_server.post("/v1/rerank", {"model": "cross", "query": "pets", "documents": TEXTS})[1]["results"]
    classes = heads_server.post("/classify", {"model": "mood", "input": TEXTS})[1]["data"]
    tokens = heads_server.post("/classify", {"model": "tags", "input": TEXTS})[1]["data"]

    scores = _asked(heads_server, "cross", {"query": ["pets"], "documents": TEXTS})["scores"]
    moods = _asked(heads_server, "mood", {"text_input": TEXTS})
    tags = _asked(heads_server, "tags", {"text_input": TEXTS})

    by_index = {each["index"]: each["relevance_score"] for each in ranked}
    assert scores["data"] == pytest.approx([by_index[0], by_index[1]], abs=1e-6)
    assert moods["label"]["data"] == [each["label"] for each in classes]
    assert moods["probabilities"]["data"] == pytest.approx([p for each in classes for p in each["probs"]], abs=1e-6)
    assert tags["label"]["data"] == [token["label"] for each in tokens for token in each["tokens"]]
    assert tags["text"]["data"] == [number for number, each in enumerate(tokens) for _ in each["tokens"]]


@pytest.mark.slow
def test_the_metadata_of_classifiers_has_their_labels(heads_server: ServerProcess) -> None:
    """In the order of the probabilities, as many as those."""
    told = heads_server.get("/v2/models/mood")[1]
    tags = heads_server.get("/v2/models/tags")[1]

    assert told["parameters"]["labels"] == ["anger", "joy", "sadness"]
    assert told["outputs"][1]["shape"] == [-1, 3]
    assert [each["name"] for each in tags["outputs"]] == ["label", "probability", "text", "start", "end"]
