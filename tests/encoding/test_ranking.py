"""Rankings and scores, in the shapes of Cohere, Jina and vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_process import ServerProcess, failed_expectations

pytestmark = pytest.mark.slow

QUERY = "Which city is the capital of France?"
DOCUMENTS = ["Cats sleep most of the day.", "Paris is the capital of France.", "Berlin is the capital of Germany."]


def _rank(server: ServerProcess, **more: Any) -> Any:  # Any: JSON values
    status, answer = server.post("/rerank", {"model": "minilm", "query": QUERY, "documents": DOCUMENTS, **more})
    assert status == 200, answer
    return answer


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/openai/v1/rerank"])
def test_every_path_ranks(server: ServerProcess, path: str) -> None:
    """Results come best first, each with the index of its document."""
    status, answer = server.post(path, {"model": "minilm", "query": QUERY, "documents": DOCUMENTS})

    assert status == 200
    assert [result["index"] for result in answer["results"]] == [1, 2, 0]
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert answer["usage"]["total_tokens"] == answer["meta"]["tokens"]["input_tokens"] > 0


def test_an_embedding_model_ranks_by_the_cosine(server: ServerProcess) -> None:
    """The score of a document is the cosine of its embedding and the query's."""
    _, embedded = server.post("/v1/embeddings", {"model": "minilm", "input": [QUERY, *DOCUMENTS]})
    query, *documents = np.array([each["embedding"] for each in embedded["data"]])

    scores = {result["index"]: result["relevance_score"] for result in _rank(server)["results"]}

    assert [scores[index] for index in range(3)] == pytest.approx([float(query @ each) for each in documents], abs=1e-5)


def test_documents_may_be_objects_and_come_back_if_wanted(server: ServerProcess) -> None:
    """Objects with a `text` rank as their texts; `top_n` keeps the best; `return_documents: false` leaves texts out."""
    objects = [{"text": text, "id": index} for index, text in enumerate(DOCUMENTS)]

    best = _rank(server, documents=objects, query={"text": QUERY}, top_n=1)["results"]
    bare = _rank(server, return_documents=False)["results"]

    assert [(each["index"], each["document"]) for each in best] == [(1, {"text": DOCUMENTS[1]})]
    assert all(each.keys() == {"index", "relevance_score"} for each in bare)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": DOCUMENTS}, "query"),
        ({"query": "", "documents": DOCUMENTS}, "query"),
        ({"query": QUERY}, "documents"),
        ({"query": QUERY, "documents": []}, "documents"),
        ({"query": QUERY, "documents": [{"title": "no text"}]}, "documents"),
        ({"query": QUERY, "documents": ["word " * 400]}, "documents"),
        ({"query": QUERY, "documents": DOCUMENTS, "top_n": -1}, "top_n"),
    ],
)
def test_what_cannot_be_ranked_is_refused(server: ServerProcess, body: Any, param: str) -> None:
    """It is 400 and names the field at fault."""
    status, answer = server.post("/rerank", {"model": "minilm", **body})

    assert (status, answer["error"]["param"]) == (400, param)


def test_scores_are_one_to_one_and_one_to_many(server: ServerProcess) -> None:
    """One text against several, several one by one, under either path."""
    _, many = server.post("/score", {"model": "minilm", "text_1": QUERY, "text_2": DOCUMENTS})
    _, pairs = server.post("/v1/score", {"model": "minilm", "text_1": [QUERY] * 3, "text_2": DOCUMENTS})
    refused, answer = server.post("/score", {"model": "minilm", "text_1": QUERY})

    scores = [each["score"] for each in many["data"]]
    assert scores == pytest.approx([each["score"] for each in pairs["data"]], abs=1e-5)
    assert max(scores) == scores[1]
    assert (refused, answer["error"]["param"]) == (400, "text_2")


def test_a_head_with_one_label_is_a_reranker(heads_server: ServerProcess) -> None:
    """The task of each model is read from its own files, and the listing says by what."""
    _, listing = heads_server.get("/v1/models")

    models = ("cross", "mood", "tags")
    chosen = {card["id"]: (card["task"], card["task_source"]) for card in listing["data"] if card["id"] in models}
    assert chosen == {
        "cross": ("rerank", "config.json: architecture BertForSequenceClassification, 1 label"),
        "mood": ("classify", "config.json: architecture BertForSequenceClassification, 3 labels"),
        "tags": ("token_classify", "config.json: architecture BertForTokenClassification"),
    }


def test_a_cross_encoder_ranks_by_its_scores(heads_server: ServerProcess) -> None:
    """A ranking has the scores that `/score` gives, and a classifier of several labels does not rank."""
    _, scored = heads_server.post("/score", {"model": "cross", "text_1": QUERY, "text_2": DOCUMENTS})
    _, ranked = heads_server.post("/rerank", {"model": "cross", "query": QUERY, "documents": DOCUMENTS})
    refused, _ = heads_server.post("/rerank", {"model": "mood", "query": QUERY, "documents": DOCUMENTS})

    scores = {result["index"]: result["relevance_score"] for result in ranked["results"]}
    assert [scores[index] for index in range(3)] == pytest.approx([each["score"] for each in scored["data"]], abs=1e-5)
    assert refused == 400


def test_the_example_ranks_with_a_model_from_this_machine(heads: dict[str, Path], tmp_path: Path) -> None:
    """`RERANKER` leads `rerank.yaml` to another model, and the example keeps its promises with it."""
    file = Path(__file__).parents[2] / "examples/rerank.yaml"
    served = ServerProcess(file, tmp_path / "log", variables={"RERANKER": str(heads["cross"])}).wait_until_ready()
    try:
        assert failed_expectations(served, file) == []
    finally:
        code = served.stop()
    assert code == 0
