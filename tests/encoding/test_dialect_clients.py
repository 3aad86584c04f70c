"""Embeddings, rankings and classes through the official clients of other protocols, with real engines."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import cohere
import numpy as np
import ollama
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from server_process import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

QUERY = "Which city is the capital of France?"
DOCUMENTS = ["Cats sleep most of the day.", "Paris is the capital of France."]
# More tokens than the model takes, and fewer than its tokenizer would warn of.
LONG = "word " * 300
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """What closes clients at the end of the test."""
    with ExitStack() as stack:
        yield stack


def _vectors(server: ServerProcess, *texts: str) -> Any:  # Any: an array of `(texts, dimensions)`
    _, answer = server.post("/v1/embeddings", {"model": "minilm", "input": texts})
    return np.array([each["embedding"] for each in answer["data"]])


def test_cohere_gets_every_type_of_embedding(server: ServerProcess, opened: ExitStack) -> None:
    """The newer client; each type has the direction of the same vector."""
    client = opened.enter_context(cohere.ClientV2(api_key="none", base_url=server.url))
    vector = _vectors(server, QUERY)[0]

    found: Any = client.embed(
        model="minilm",
        texts=[QUERY],
        input_type="search_query",
        embedding_types=["float", "int8", "uint8", "binary", "ubinary", "base64"],
        output_dimension=384,
    ).embeddings.dict(by_alias=True)

    assert found["float"][0] == pytest.approx(vector, abs=1e-6)
    assert np.frombuffer(base64.b64decode(found["base64"][0]), "<f4") == pytest.approx(vector, abs=1e-6)
    for whole in (np.array(found["int8"][0]), np.array(found["uint8"][0]) - 128):
        assert whole @ vector / np.linalg.norm(whole) > 0.999
    bits = np.unpackbits(np.array(found["ubinary"][0], np.uint8))
    assert (bits == (vector > 0)).all()
    assert [byte + 128 for byte in found["binary"][0]] == found["ubinary"][0]


def test_cohere_s_older_client_embeds(server: ServerProcess, opened: ExitStack) -> None:
    """At version 1's path, in batches of its own, and with text that is cut."""
    client = opened.enter_context(cohere.Client(api_key="none", base_url=server.url))

    found = client.embed(model="minilm", texts=[*DOCUMENTS, LONG], input_type="search_document")
    cut = client.embed(model="minilm", texts=[LONG], input_type="search_document", truncate="START")
    with pytest.raises(cohere.BadRequestError, match="256 tokens"):
        client.embed(model="minilm", texts=[LONG], input_type="search_document", truncate="NONE")

    assert isinstance(found.embeddings, list)
    assert np.array(found.embeddings[:2]) == pytest.approx(_vectors(server, *DOCUMENTS), abs=1e-6)
    assert isinstance(cut.embeddings, list)
    assert len(cut.embeddings[0]) == 384


def test_cohere_is_told_why_images_are_refused(server: ServerProcess, opened: ExitStack) -> None:
    """By a model of texts alone."""
    client = opened.enter_context(cohere.ClientV2(api_key="none", base_url=server.url))

    with pytest.raises(cohere.BadRequestError) as refused:
        client.embed(
            model="minilm", images=[f"data:image/png;base64,{PIXEL}"], input_type="image", embedding_types=["float"]
        )

    assert "not a multimodal model" in refused.value.body["message"]


def test_cohere_ranks_objects_by_their_text(server: ServerProcess, opened: ExitStack) -> None:
    """With the older client, whose documents may be objects; the response has them if they are asked for."""
    client = opened.enter_context(cohere.Client(api_key="none", base_url=server.url))
    documents = [{"text": text, "source": "a book"} for text in DOCUMENTS]

    ranks = client.rerank(model="minilm", query=QUERY, documents=documents, return_documents=True, top_n=1)

    assert [result.index for result in ranks.results] == [1]
    assert ranks.results[0].document is not None
    assert ranks.results[0].document.text == DOCUMENTS[1]


@pytest.mark.parametrize("path", ["", "/embed", "/embed?model=minilm"])
def test_hugging_face_s_client_embeds(server: ServerProcess, path: str, opened: ExitStack) -> None:
    """The client of its hub and endpoints, at the root and at the path of Text Embeddings Inference."""
    client = opened.enter_context(InferenceClient(f"{server.url}{path}", token="none"))

    one = client.feature_extraction(QUERY)
    several: Any = client.feature_extraction(DOCUMENTS, normalize=True, truncate=True)

    assert one == pytest.approx(_vectors(server, QUERY), abs=1e-6)
    assert several == pytest.approx(_vectors(server, *DOCUMENTS), abs=1e-6)


def test_hugging_face_s_client_compares_sentences(server: ServerProcess, opened: ExitStack) -> None:
    """By cosine; what it asks for information comes from the same server."""
    client = opened.enter_context(InferenceClient(server.url, provider="hf-inference", token="none"))

    scores = client.sentence_similarity(QUERY, other_sentences=DOCUMENTS)
    info = client.get_endpoint_info()

    assert scores == pytest.approx(_vectors(server, *DOCUMENTS) @ _vectors(server, QUERY)[0], abs=1e-6)
    assert (info["model_id"], info["max_input_length"]) == ("minilm", 256)
    assert "embedding" in info["model_type"]


def test_hugging_face_s_client_is_told_what_is_missing(server: ServerProcess, opened: ExitStack) -> None:
    """No sparse embeddings, and no prompts, of a model that has neither."""
    client = opened.enter_context(InferenceClient(token="none"))

    with pytest.raises(HfHubHTTPError, match="no sparse embeddings"):
        client.feature_extraction(QUERY, model=f"{server.url}/embed_sparse")
    with pytest.raises(HfHubHTTPError, match="has no prompt 'query'"):
        client.feature_extraction(QUERY, model=server.url, prompt_name="query")


def test_tokens_have_no_embeddings_here(server: ServerProcess) -> None:
    """A model of vLLM computes one thing for each text, and says so."""
    status, answer = server.post("/embed_all", {"inputs": QUERY})

    assert status == 400
    assert "none for their tokens" in answer["error"]


def test_hugging_face_s_client_classifies(heads_server: ServerProcess, opened: ExitStack) -> None:
    """The likeliest label; the route has all, which sum to 1, and raw scores."""
    client = opened.enter_context(InferenceClient(f"{heads_server.url}/predict?model=mood", token="none"))

    best: Any = client.text_classification(QUERY)
    _, labels = heads_server.post("/predict?model=mood", {"inputs": QUERY})
    _, (raw,) = heads_server.post("/predict?model=mood", {"inputs": [[QUERY]], "raw_scores": True})
    tags, refused = heads_server.post("/predict?model=tags", {"inputs": QUERY})

    assert best.label == labels[0]["label"]
    assert sum(each["score"] for each in labels) == pytest.approx(1)
    exponents = np.exp([each["score"] for each in raw])
    assert [each["label"] for each in raw] == [each["label"] for each in labels]
    assert exponents / exponents.sum() == pytest.approx([each["score"] for each in labels], abs=1e-5)
    assert (tags, "labels tokens" in refused["error"]) == (400, True)


def test_texts_are_ranked_as_documents_are(heads_server: ServerProcess) -> None:
    """The format of the path is decided by the body."""
    _, ranks = heads_server.post("/rerank?model=cross", {"query": QUERY, "texts": DOCUMENTS, "return_text": True})
    _, raw = heads_server.post("/rerank?model=cross", {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True})
    _, other = heads_server.post("/rerank", {"model": "cross", "query": QUERY, "documents": DOCUMENTS})

    expected = [(each["index"], each["relevance_score"]) for each in other["results"]]
    assert [(each["index"], each["score"]) for each in ranks] == [
        (index, pytest.approx(score)) for index, score in expected
    ]
    assert ranks[0]["text"] == DOCUMENTS[ranks[0]["index"]]
    assert [1 / (1 + np.exp(-each["score"])) for each in raw] == pytest.approx(
        [score for _, score in expected], abs=1e-5
    )


def test_ollama_s_client_embeds(server: ServerProcess, opened: ExitStack) -> None:
    """By both routes; long texts are cut unless it refuses that."""
    client = opened.enter_context(ollama.Client(server.url))

    newer = client.embed("minilm:latest", [*DOCUMENTS, LONG], dimensions=384)
    older = client.embeddings("minilm", QUERY)
    with pytest.raises(ollama.ResponseError, match="256 tokens"):
        client.embed("minilm", LONG, truncate=False)

    assert np.array(newer.embeddings[:2]) == pytest.approx(_vectors(server, *DOCUMENTS), abs=1e-6)
    assert older.embedding == pytest.approx(_vectors(server, QUERY)[0], abs=1e-6)


def _langchain_ollama(url: str) -> Callable[[list[str]], list[list[float]]]:
    from langchain_ollama import OllamaEmbeddings

    return OllamaEmbeddings(model="minilm", base_url=url).embed_documents


def _llama_index_tei(url: str) -> Callable[[list[str]], list[list[float]]]:
    from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

    model = TextEmbeddingsInference(model_name="minilm", base_url=url)
    return lambda texts: model.get_text_embedding_batch(texts)


@pytest.mark.parametrize("integration", [_langchain_ollama, _llama_index_tei])
def test_integrations_embed(
    server: ServerProcess, integration: Callable[[str], Callable[[list[str]], list[list[float]]]]
) -> None:
    """Of LangChain and LlamaIndex, as their users set them up."""
    found = integration(server.url)(DOCUMENTS)

    assert np.array(found) == pytest.approx(_vectors(server, *DOCUMENTS), abs=1e-6)


@pytest.mark.parametrize("dimensions", [384, None])
def test_the_native_size_may_be_requested(server: ServerProcess, dimensions: int | None) -> None:
    """Of any model, cut or not; and for chats in the place of texts it is looked at, too."""
    status, answer = server.post("/v1/embeddings", {"model": "minilm", "input": QUERY, "dimensions": dimensions})
    chats, refused = server.post(
        "/v1/embeddings", {"model": "minilm", "messages": [{"role": "user", "content": "a"}], "dimensions": 128}
    )

    assert status == 200
    assert len(answer["data"][0]["embedding"]) == 384
    assert (chats, refused["error"]["param"]) == (400, "dimensions")
