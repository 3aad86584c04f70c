"""OpenAI's answers as objects, for models written in Python; plain mappings become objects inside them.

Source: https://platform.openai.com/docs/api-reference; rerank is Cohere's and Jina's.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
)

Json = dict[str, Any]  # Any: JSON values


def _now() -> int:
    return int(time.time())


def _id(prefix: str) -> Callable[[], str]:
    return lambda: f"{prefix}-{uuid.uuid4().hex}"


class _Vector(Protocol):
    """What numpy and torch have in common."""

    def tolist(self) -> list[float]: ...


def _plain(vector: _Vector | list[float] | str) -> list[float] | str:
    return vector if isinstance(vector, list | str) else vector.tolist()


class ResponsePart(BaseModel):
    """A part of an answer: fields nobody named here are written too, and what was left unset is left out."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    nullable: ClassVar[frozenset[str]] = frozenset()
    """Fields that clients expect to see even where there is nothing in them."""

    @model_serializer(mode="wrap")
    def _without_unset(self, write: SerializerFunctionWrapHandler, _: SerializationInfo) -> Json:
        shown = self.model_fields_set | self.nullable
        return {name: value for name, value in write(self).items() if value is not None or name in shown}


class OpenAIResponse(ResponsePart):
    """A whole answer; a `model` that is not set becomes the name the client used."""

    model: str | None = None


class Usage(ResponsePart):
    """Tokens that were read and written."""

    prompt_tokens: int = 0
    total_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: Json | None = None


class ChatMessage(ResponsePart):
    """What the model said."""

    nullable = frozenset({"content"})

    role: str = "assistant"
    content: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    tool_calls: list[Json] | None = None


class ChatCompletionChoice(ResponsePart):
    """One alternative of a chat completion."""

    nullable = frozenset({"logprobs", "finish_reason"})

    index: int = 0
    message: ChatMessage
    logprobs: Json | None = None
    finish_reason: str | None = "stop"


class ChatCompletion(OpenAIResponse):
    """A whole answer to a chat completion request."""

    id: str = Field(default_factory=_id("chatcmpl"))
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(default_factory=_now)
    choices: list[ChatCompletionChoice]
    usage: Usage | None = None


class ChatDelta(ResponsePart):
    """What a chunk adds to a message."""

    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Json] | None = None


class ChatCompletionChunkChoice(ResponsePart):
    """What a chunk adds to one alternative; `finish_reason` stands in the last."""

    nullable = frozenset({"logprobs", "finish_reason"})

    index: int = 0
    delta: ChatDelta
    logprobs: Json | None = None
    finish_reason: str | None = None


class ChatCompletionChunk(OpenAIResponse):
    """A piece of the stream that answers a chat completion request; give all of one stream the same `id`."""

    id: str = Field(default_factory=_id("chatcmpl"))
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int = Field(default_factory=_now)
    choices: list[ChatCompletionChunkChoice]
    usage: Usage | None = None


class CompletionChoice(ResponsePart):
    """One alternative of a completion, or what a chunk adds to it."""

    nullable = frozenset({"logprobs", "finish_reason"})

    index: int = 0
    text: str
    logprobs: Json | None = None
    finish_reason: str | None = None


class Completion(OpenAIResponse):
    """A whole answer to a completion request."""

    id: str = Field(default_factory=_id("cmpl"))
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(default_factory=_now)
    choices: list[CompletionChoice]
    usage: Usage | None = None


class CompletionChunk(Completion):
    """A piece of the stream that answers a completion request; OpenAI gives it the same shape."""


class EmbeddingData(ResponsePart):
    """The vector of one text: a list, an array of numpy's, or base64 of little-endian float32."""

    index: int
    object: Literal["embedding"] = "embedding"
    embedding: Annotated[list[float] | str, BeforeValidator(_plain)]


class Embedding(OpenAIResponse):
    """The answer to an embedding request."""

    object: Literal["list"] = "list"
    data: list[EmbeddingData]
    usage: Usage = Usage()


class RerankDocument(ResponsePart):
    """A document as it was sent."""

    text: str


class RerankResult(ResponsePart):
    """How relevant the document at `index` is."""

    index: int
    relevance_score: float
    document: RerankDocument | None = None


class Rerank(OpenAIResponse):
    """The answer to a rerank request, the best document first."""

    id: str = Field(default_factory=_id("rerank"))
    results: list[RerankResult]
    usage: Usage = Usage()
