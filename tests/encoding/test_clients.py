"""Embeddings and rankings through the clients that people have."""

from __future__ import annotations

import cohere
import openai
import pytest
from pydantic import SecretStr
from server_process import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

QUERY = "Which city is the capital of France?"
DOCUMENTS = ["Cats sleep most of the day.", "Paris is the capital of France."]


def test_cohere_ranks(server: ServerProcess) -> None:
    """Both of Cohere's clients, each at its own path."""
    with cohere.ClientV2(api_key="none", base_url=server.url) as newer:
        second = newer.rerank(model="minilm", query=QUERY, documents=DOCUMENTS, top_n=1)
    with cohere.Client(api_key="none", base_url=server.url) as older:
        first = older.rerank(model="minilm", query=QUERY, documents=DOCUMENTS, return_documents=True)

    assert [result.index for result in second.results] == [1]
    assert [result.index for result in first.results] == [1, 0]
    assert first.results[0].document is not None
    assert first.results[0].document.text == DOCUMENTS[1]


def test_langchain_finds_the_document(server: ServerProcess) -> None:
    """LangChain's embeddings for OpenAI, which are the texts themselves where it need not count tokens."""
    from langchain_openai import OpenAIEmbeddings

    embeddings = OpenAIEmbeddings(
        model="minilm",
        openai_api_base=f"{server.url}/v1",
        openai_api_key=SecretStr("none"),
        check_embedding_ctx_length=False,
    )

    query, documents = embeddings.embed_query(QUERY), embeddings.embed_documents(DOCUMENTS)

    assert [len(each) for each in (query, *documents)] == [384] * 3
    assert _nearest(query, documents) == 1


def test_llama_index_finds_the_document(server: ServerProcess) -> None:
    """LlamaIndex's embeddings for servers that are like OpenAI."""
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    embeddings = OpenAILikeEmbedding(model_name="minilm", api_base=f"{server.url}/v1", api_key="none")

    query, documents = embeddings.get_query_embedding(QUERY), embeddings.get_text_embedding_batch(DOCUMENTS)

    assert _nearest(query, documents) == 1


async def test_the_asynchronous_client_of_openai_gets_many(server: ServerProcess) -> None:
    """The same client, awaited, with a hundred texts in one request."""
    async with openai.AsyncOpenAI(base_url=f"{server.url}/openai/v1", api_key="none", max_retries=0) as client:
        answer = await client.embeddings.create(model="text-embedding-3-small", input=["a", "b"] * 50)

    assert [each.index for each in answer.data] == list(range(100))
    assert answer.usage.prompt_tokens == 300


def _nearest(query: list[float], documents: list[list[float]]) -> int:
    scores = [sum(a * b for a, b in zip(query, document, strict=True)) for document in documents]
    return scores.index(max(scores))
