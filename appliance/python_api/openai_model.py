"""Models written in Python that answer OpenAI's clients: a method for each thing that can be asked."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from appliance.core.model import Operation
from appliance.python_api.base_model import BasePythonModel, offered
from appliance.python_api.error_response import ErrorResponse
from appliance.python_api.request_types import ChatCompletionRequest, CompletionRequest, EmbeddingRequest, RerankRequest
from appliance.python_api.response_types import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    Embedding,
    Rerank,
)

Whole = TypeVar("Whole", covariant=True)
Chunk = TypeVar("Chunk", covariant=True)

Chunks = AsyncGenerator[Chunk | str]
"""
A stream: chunks, or texts that are server-sent events or the JSON of chunks.
"""

Returned = Awaitable[Whole | Chunks[Chunk] | ErrorResponse] | Chunks[Chunk]
"""
What a method that writes may be: a coroutine, or an asynchronous generator itself.
"""

Context = Mapping[str, Any]
"""
Facts about the call: `headers`, with lower-case names.
"""


@dataclass(frozen=True, slots=True)
class RawRequest:
    """The request as HTTP has it; names of `headers` are found in any case."""

    headers: Mapping[str, str]
    path: str = ""
    query: str = ""


class OpenAIModel(BasePythonModel):
    """A model for OpenAI's clients; it can be asked whatever the methods that its class overrides answer.

    Each takes the request, the request as HTTP has it, and a context; it returns an answer (an object of
    `appliance.openai.types`, or anything with the same fields), an asynchronous generator of chunks, or an
    `ErrorResponse`. Where the client wants a stream and gets an answer, or the other way round, one becomes the other.
    A plain method runs in a thread.
    """


class OpenAIGenerativeModel(OpenAIModel):
    """A model that writes."""

    @offered
    def create_completion(
        self, request: CompletionRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> Returned[Completion, CompletionChunk]:
        """Continue a prompt."""
        raise NotImplementedError

    @offered
    def create_chat_completion(
        self, request: ChatCompletionRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> Returned[ChatCompletion, ChatCompletionChunk]:
        """Answer a conversation."""
        raise NotImplementedError


class OpenAIEncoderModel(OpenAIModel):
    """A model that makes vectors of texts, or ranks them."""

    @offered
    def create_embedding(
        self, request: EmbeddingRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> Awaitable[Embedding | ErrorResponse]:
        """Make vectors of texts."""
        raise NotImplementedError

    @offered
    def create_rerank(
        self, request: RerankRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> Awaitable[Rerank | ErrorResponse]:
        """Rank documents by what they say about a query."""
        raise NotImplementedError


METHODS: Mapping[Operation, str] = {
    Operation.CHAT_COMPLETION: "create_chat_completion",
    Operation.COMPLETION: "create_completion",
    Operation.EMBEDDING: "create_embedding",
    Operation.RERANK: "create_rerank",
}
"""
The method that answers each operation.
"""
