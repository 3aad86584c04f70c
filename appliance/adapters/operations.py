"""OpenAI's operations over a service that has none of its protocol: text, vectors and scores become its answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Protocol

from appliance.adapters.chat_request import ChatRequestBuilder
from appliance.adapters.chat_response import ChatResponseBuilder, chat_completion
from appliance.adapters.chat_stream import chat_chunks
from appliance.adapters.http_client import Headers
from appliance.adapters.messages import Json
from appliance.adapters.openai_responses import AdapterUsage, embeddings, rerank
from appliance.adapters.requests import EmbeddingRequest, RerankRequest, TextRequest
from appliance.adapters.text_generation import TextGeneration, Writer
from appliance.config.adapters import ChatConfig
from appliance.core.concurrency import gather_limited
from appliance.core.errors import RequestError

Vectors = tuple[list[list[float]], AdapterUsage]
Scores = tuple[list[float], AdapterUsage]


class Embedder(Protocol):
    """A target that makes vectors."""

    async def embed(self, request: EmbeddingRequest, texts: Sequence[str], headers: Headers) -> Vectors:
        """A vector for each of the texts, which are all or some of the request's."""


class Ranker(Protocol):
    """A target that scores documents."""

    async def score(self, request: RerankRequest, headers: Headers) -> Scores:
        """A score for each document of the request."""


@dataclass(frozen=True, slots=True)
class Chatting:
    """Chat over a writer: `chat` is None where its request takes the messages as they are."""

    name: str
    writer: Writer
    config: ChatConfig
    chat: ChatRequestBuilder | None

    async def answer(self, body: Json, headers: Headers) -> Json | AsyncGenerator[Json]:
        """The chat completion, or its chunks.

        Raises:
            RequestError: the request is wrong, or refused.
            GatewayError: the target does not answer.
        """
        made = await TextGeneration(self.writer, await self._request(body), headers, self.name).answer()
        face = ChatResponseBuilder.of(body, self.name, self.config)
        return chat_completion(made, face) if isinstance(made, dict) else chat_chunks(made, face)

    async def _request(self, body: Json) -> TextRequest:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise RequestError("messages is missing; it must be a list of one message or more", param="messages")
        made = body if self.chat is None else body | await self.chat.completion_async(body)
        return TextRequest.with_prompts(made, [made.get("prompt") or ""], self.config.stop)


@dataclass(frozen=True, slots=True)
class Completing:
    """Completions over a writer."""

    name: str
    writer: Writer

    async def answer(self, body: Json, headers: Headers) -> Json | AsyncGenerator[Json]:
        """The completion, or its chunks.

        Raises:
            RequestError: the request is wrong, or refused.
            GatewayError: the target does not answer.
        """
        return await TextGeneration(self.writer, TextRequest.of(body), headers, self.name).answer()


@dataclass(frozen=True, slots=True)
class Embedding:
    """Embeddings, at most `max_batch` texts in one request to the target."""

    name: str
    embedder: Embedder
    max_batch: int | None

    async def answer(self, body: Json, headers: Headers) -> Json:
        """The embeddings.

        Raises:
            RequestError: the request is wrong, or refused.
            GatewayError: the target does not answer.
        """
        request = EmbeddingRequest.of(body)
        batches = _batches(request.texts, self.max_batch)
        parts = await gather_limited([partial(self.embedder.embed, request, batch, headers) for batch in batches])
        vectors = [vector for part, _ in parts for vector in part]
        return embeddings(vectors, request, self.name, reduce(AdapterUsage.__add__, (usage for _, usage in parts)))


@dataclass(frozen=True, slots=True)
class Ranking:
    """Documents in order, at most `max_batch` of them in one request to the target."""

    name: str
    ranker: Ranker
    max_batch: int | None = None

    async def answer(self, body: Json, headers: Headers) -> Json:
        """The ranking.

        Raises:
            RequestError: the request is wrong, or refused.
            GatewayError: the target does not answer.
        """
        request = RerankRequest.of(body)
        batches = [replace(request, documents=batch) for batch in _batches(request.documents, self.max_batch)]
        parts = await gather_limited([partial(self.ranker.score, batch, headers) for batch in batches])
        scores = [score for part, _ in parts for score in part]
        return rerank(scores, request, self.name, reduce(AdapterUsage.__add__, (usage for _, usage in parts)))


def _batches(texts: Sequence[str], size: int | None) -> list[Sequence[str]]:
    size = size or len(texts)
    return [texts[start : start + size] for start in range(0, len(texts), size)]
