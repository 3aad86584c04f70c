"""Models written in Python for OpenAI's clients: one method per operation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import Any, Self, TypeVar

from multidict import CIMultiDict

from appliance.core.model import Operation
from appliance.python_api import types
from appliance.python_api.base_model import BasePythonModel, Method, overridable
from appliance.python_api.raw_request import RawRequest

Response = TypeVar("Response", covariant=True)
Chunk = TypeVar("Chunk", covariant=True)

Chunks = AsyncGenerator[Chunk | str]
"""A stream: chunks, or texts that are server-sent events or the JSON of chunks."""

Result = Awaitable[Response | Chunks[Chunk] | types.ErrorResponse] | Chunks[Chunk]
"""The result of a method that generates text, which is a coroutine or an asynchronous generator."""

Context = Mapping[str, Any]
"""Facts about the request: `headers`, with lower-case names; `response`, whose `headers` are sent with the response."""


_IS_ABSTRACT = "_appliance_is_abstract"


def _abstract(method: Method) -> Method:
    """Mark a default method that does nothing."""
    setattr(method, _IS_ABSTRACT, True)
    return overridable(method)


class ResponseHead:
    """What a model adds to its response; `headers` match in any case."""

    def __init__(self) -> None:
        self.headers: CIMultiDict[str] = CIMultiDict()


class OpenAIModel(BasePythonModel):
    """A model for OpenAI's clients; it supports the operations whose methods its class overrides.

    A method takes the request, the request as HTTP has it, and a context; it returns a response (an object of
    `appliance.openai.types`, or anything with the same fields), an asynchronous generator of chunks, or an
    `ErrorResponse`. If the client requests a stream and the method returns a whole response, or the other way round,
    one is converted to the other. A plain method runs in a thread.
    """

    def __new__(cls, *_args: object, **_keywords: object) -> Self:
        """Raise `TypeError` for a class that overrides none of the methods."""
        methods = [getattr(cls, name, None) for name in METHODS.values()]
        if all(method is None or hasattr(method, _IS_ABSTRACT) for method in methods):
            names = ", ".join(METHODS.values())
            raise TypeError(f"{cls.__name__} is abstract: it must override one of {names}")
        return super().__new__(cls)


class OpenAIGenerativeModel(OpenAIModel):
    """A model that generates text."""

    @_abstract
    def create_completion(
        self, request: types.CompletionRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> Result[types.Completion, types.CompletionChunk]:
        """Continue a prompt."""
        raise NotImplementedError

    @_abstract
    def create_chat_completion(
        self,
        request: types.ChatCompletionRequest,
        raw_request: RawRequest | None = None,
        context: Context | None = None,
    ) -> Result[types.ChatCompletion, types.ChatCompletionChunk]:
        """Answer a conversation."""
        raise NotImplementedError


class OpenAIEncoderModel(OpenAIModel):
    """A model that embeds or ranks texts."""

    @_abstract
    def create_embedding(
        self, request: types.EmbeddingRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> Awaitable[types.Embedding | types.ErrorResponse]:
        """Embed texts."""
        raise NotImplementedError

    @_abstract
    def create_rerank(
        self, request: types.RerankRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> Awaitable[types.Rerank | types.ErrorResponse]:
        """Rank documents by their relevance to a query."""
        raise NotImplementedError


METHODS: Mapping[Operation, str] = {
    Operation.CHAT_COMPLETION: "create_chat_completion",
    Operation.COMPLETION: "create_completion",
    Operation.EMBEDDING: "create_embedding",
    Operation.RERANK: "create_rerank",
}
"""The method of each operation."""
