"""Text Embeddings Inference over scripted models."""

from __future__ import annotations

from typing import Any

import pytest
from dialects.conftest import ScriptedModel, embeddings
from inference_doubles import InferenceClient

from appliance.core.errors import RequestError, UnavailableError
from appliance.core.model import Operation

RANKS = {"results": [{"index": 0, "relevance_score": 0.1}, {"index": 1, "relevance_score": 0.9}]}
CLASSES = {"data": [{"index": 0, "label": "b", "probs": [0.2, 0.8]}, {"index": 1, "label": "a", "probs": [0.7, 0.3]}]}


async def _ask(client: InferenceClient, path: str, body: object) -> Any:
    answer = await client.post(path, params={"model": "one"}, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("path", ["/embed", "/", "/invocations"])
@pytest.mark.parametrize(
    ("inputs", "sent"), [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])]
)
async def test_texts_and_token_ids_are_embedded(
    client: InferenceClient, model: ScriptedModel, path: str, inputs: object, sent: list[object]
) -> None:
    """At each path that clients use; embeddings have length 1 unless the client refuses it."""
    model.answers[Operation.EMBEDDING] = embeddings(*[[3.0, 4.0]] * len(sent))

    assert await _ask(client, path, {"inputs": inputs}) == [[0.6, 0.8]] * len(sent)
    assert await _ask(client, path, {"inputs": inputs, "normalize": False}) == [[3.0, 4.0]] * len(sent)
    assert model.bodies[0] == {"model": "one", "input": sent}
    assert model.bodies[1] == {"model": "one", "input": sent, "use_activation": False}


async def test_prompts_and_truncation_become_fields(client: InferenceClient, model: ScriptedModel) -> None:
    """Names of prompts are those of the model's files; a text that is not to be cut has no field for it."""
    model.facts = {"prompts": {"query": "query: "}}
    model.answers[Operation.EMBEDDING] = embeddings([1.0])

    await _ask(client, "/embed", {"inputs": "a", "prompt_name": "query", "truncate": False, "dimensions": 1})
    await _ask(client, "/embed", {"inputs": "a", "truncate": True, "truncation_direction": "left"})
    unknown = await client.post("/embed?model=one", json={"inputs": "a", "prompt_name": "none"})

    assert model.bodies[0] == {"model": "one", "input": ["query: a"], "dimensions": 1}
    assert model.bodies[1] == {"model": "one", "input": ["a"], "truncate_prompt_tokens": -1, "truncation_side": "left"}
    assert unknown.status_code == 400
    assert "This model has no prompt 'none'; its files have: query" in unknown.json()["error"]


async def test_sparse_embeddings_have_no_zeros(client: InferenceClient, model: ScriptedModel) -> None:
    """Of a model that has them; any other one refuses."""
    model.answers[Operation.EMBEDDING] = embeddings([0.0, 0.5, 0.0, 2.0])

    refused = await client.post("/embed_sparse?model=one", json={"inputs": "a"})
    model.facts = {"sparse": True}
    found = await _ask(client, "/embed_sparse", {"inputs": "a"})

    assert refused.status_code == 400
    assert refused.json() == {
        "error": "The model 'one' has no sparse embeddings; /embed gives its dense ones",
        "error_type": "Validation",
    }
    assert found == [[{"index": 1, "value": 0.5}, {"index": 3, "value": 2.0}]]


async def test_each_token_has_an_embedding(client: InferenceClient, model: ScriptedModel) -> None:
    """By the operation that gives the values of the pooler."""
    model.answers[Operation.POOLING] = {"data": [{"index": 0, "data": [[1.0], [2.0]]}]}

    assert await _ask(client, "/embed_all", {"inputs": "a"}) == [[[1.0], [2.0]]]
    assert model.bodies[0]["task"] == "token_embed"


@pytest.mark.parametrize("path", ["/similarity", "/"])
async def test_sentences_are_compared_by_cosine(client: InferenceClient, model: ScriptedModel, path: str) -> None:
    """The source is embedded with the others, in one request."""
    model.answers[Operation.EMBEDDING] = embeddings([1.0, 0.0], [2.0, 0.0], [0.0, 3.0])

    found = await _ask(client, path, {"inputs": {"source_sentence": "a", "sentences": ["b", "c"]}})

    assert found == [1.0, 0.0]
    assert model.bodies[0]["input"] == ["a", "b", "c"]


@pytest.mark.parametrize("path", ["/rerank", "/", "/invocations"])
async def test_texts_are_ranked(client: InferenceClient, model: ScriptedModel, path: str) -> None:
    """Best first, with the text if the client wants it, and with raw scores."""
    model.answers[Operation.RERANK] = RANKS
    body = {"query": "q", "texts": ["a", "b"]}

    short = await _ask(client, path, body)
    long = await _ask(client, path, {**body, "return_text": True, "raw_scores": True})

    assert short == [{"index": 1, "score": 0.9}, {"index": 0, "score": 0.1}]
    assert long[0] == {"index": 1, "score": 0.9, "text": "b"}
    assert model.bodies[1] == {"model": "one", "query": "q", "documents": ["a", "b"], "use_activation": False}


async def test_a_ranking_of_documents_is_still_the_other_protocol_s(
    client: InferenceClient, model: ScriptedModel
) -> None:
    """The body decides what is meant by the path that both protocols have, and the format of errors."""
    model.answers[Operation.RERANK] = RANKS

    documents = await client.post("/rerank", json={"model": "one", "query": "q", "documents": ["a", "b"]})
    wrong = await client.post("/rerank", json={"model": "one", "query": "q", "texts": []})
    missing = await client.post("/rerank", json={"query": "q", "texts": ["a"]})

    assert documents.json() == RANKS
    assert (wrong.status_code, wrong.json()["error_type"]) == (400, "Validation")
    assert "one, org/uno, two" in missing.json()["error"]


async def test_labels_are_predicted_best_first(client: InferenceClient, model: ScriptedModel) -> None:
    """One text gives one list, a batch a list of them; labels have the names of the model."""
    model.answers[Operation.CLASSIFICATION] = CLASSES
    model.facts = {"labels": ["a", "b"]}

    single = [{"score": 0.8, "label": "b"}, {"score": 0.2, "label": "a"}]
    batch = await _ask(client, "/predict", {"inputs": [["x"], ["y"]], "raw_scores": True})

    model.answers[Operation.CLASSIFICATION] = {"data": CLASSES["data"][:1]}
    alone = await _ask(client, "/predict", {"inputs": "x"})

    assert alone == single
    assert batch == [single, [{"score": 0.7, "label": "a"}, {"score": 0.3, "label": "b"}]]
    assert model.bodies[0] == {"model": "one", "input": ["x", "y"], "use_activation": False}


async def test_labels_without_names_are_numbered(client: InferenceClient, model: ScriptedModel) -> None:
    """As transformers names them."""
    model.answers[Operation.CLASSIFICATION] = {"data": CLASSES["data"][:1]}

    assert [each["label"] for each in await _ask(client, "/predict", {"inputs": "x"})] == ["LABEL_1", "LABEL_0"]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/embed", {"inputs": []}, "inputs is empty"),
        ("/embed", {"inputs": ["a", 1]}, "numbers beside texts"),
        ("/embed", {"inputs": 1}, "inputs"),
        ("/predict", {"inputs": ["a", "b"]}, "pairs are ranked by /rerank"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, "sentences"),
        ("/rerank", {"query": "q", "texts": [1]}, "texts"),
    ],
)
async def test_bad_requests_are_told_why_in_its_format(
    client: InferenceClient, path: str, body: object, says: str
) -> None:
    """400 with a type."""
    answer = await client.post(path, params={"model": "one"}, json=body)

    assert answer.status_code == 400
    assert answer.json().keys() == {"error", "error_type"}
    assert says in answer.json()["error"]


@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [
        (UnavailableError("not now", retry_after=3), 503, "Unhealthy"),
        (RequestError("too many", status=429), 429, "Overloaded"),
        (RuntimeError("secret"), 500, "Backend"),
    ],
)
async def test_errors_of_the_model_have_a_type(
    client: InferenceClient, model: ScriptedModel, fault: Exception, status: int, kind: str
) -> None:
    """As its own servers name them."""
    model.answer_fault = fault

    answer = await client.post("/embed?model=one", json={"inputs": "a"})

    assert (answer.status_code, answer.json()["error_type"]) == (status, kind)
    assert "secret" not in answer.text


async def test_info_describes_the_model(client: InferenceClient, model: ScriptedModel) -> None:
    """With the words of its own servers for what a model is."""
    model.facts = {"task": "rerank", "labels": ["relevance"], "max_model_len": 512}

    info = (await client.get("/info", params={"model": "org/uno"})).json()
    missing = await client.get("/info")

    assert info["model_id"] == "org/uno"
    assert info["model_type"] == {"reranker": {"id2label": {"0": "relevance"}, "label2id": {"relevance": 0}}}
    assert (info["max_input_length"], info["max_client_batch_size"]) == (512, 2048)
    assert missing.status_code == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"inputs": ["a", "b"]}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}),
        ("/predict", {"inputs": "a"}),
        ("/rerank", {"query": "q", "texts": ["a"]}),
    ],
)
async def test_a_model_that_answers_something_else_is_a_bad_gateway(
    client: InferenceClient, model: ScriptedModel, path: str, body: object
) -> None:
    """The client is not at fault, and neither is the server."""
    model.answers = {Operation.EMBEDDING: embeddings([1.0]), Operation.CLASSIFICATION: CLASSES, Operation.RERANK: RANKS}

    answer = await client.post(path, params={"model": "one"}, json=body)

    assert (answer.status_code, answer.json()["error_type"]) == (502, "Backend")
