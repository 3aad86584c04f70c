"""OpenAI's responses as objects, for models written in Python; mappings inside them become objects.

They accept additional fields, and leave out what is unset; the product's own are in `appliance.core.openai_types`.

Source: https://platform.openai.com/docs/api-reference; rerank is Cohere's and Jina's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from appliance.core.openai_types import Json, new_id, now


class _Array(Protocol):
    """The common method of numpy's arrays and torch's tensors."""

    def tolist(self) -> list[float]: ...


def _to_list(vector: _Array | list[float] | str) -> list[float] | str:
    return vector if isinstance(vector, list | str) else vector.tolist()


class ResponsePart(BaseModel):
    """A part of a response: additional fields are written too, unset ones are left out."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    nullable: ClassVar[frozenset[str]] = frozenset()
    """Fields that clients expect even if they are null."""

    @model_serializer(mode="wrap")
    def _without_unset(self, write: SerializerFunctionWrapHandler, _: SerializationInfo) -> Json:
        shown = self.model_fields_set | self.nullable
        return {name: value for name, value in write(self).items() if value is not None or name in shown}


class OpenAIResponse(ResponsePart):
    """A response; an unset `model` becomes the name the client used."""

    model: str | None = None


class Usage(ResponsePart):
    """Numbers of tokens that were read and generated."""

    prompt_tokens: int = 0
    total_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: Json | None = None


class ChatMessage(ResponsePart):
    """A message of the model."""

    nullable = frozenset({"content"})

    role: str = "assistant"
    content: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    tool_calls: list[Json] | None = None


class _Choice(ResponsePart):
    nullable = frozenset({"logprobs", "finish_reason"})

    index: int = 0


class ChatCompletionChoice(_Choice):
    """One choice of a chat completion."""

    message: ChatMessage
    logprobs: Json | None = None
    finish_reason: str | None = "stop"


class ChatCompletion(OpenAIResponse):
    """The response to a chat completion request."""

    id: str = Field(default_factory=partial(new_id, "chatcmpl"))
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(default_factory=now)
    choices: list[ChatCompletionChoice]
    usage: Usage | None = None


class ChatDelta(ResponsePart):
    """What a chunk adds to a message."""

    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Json] | None = None


class ChatCompletionChunkChoice(_Choice):
    """What a chunk adds to one choice; the last one has a `finish_reason`."""

    delta: ChatDelta
    logprobs: Json | None = None
    finish_reason: str | None = None


class ChatCompletionChunk(OpenAIResponse):
    """A chunk of a streamed chat completion; give all chunks of a stream the same `id`."""

    id: str = Field(default_factory=partial(new_id, "chatcmpl"))
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int = Field(default_factory=now)
    choices: list[ChatCompletionChunkChoice]
    usage: Usage | None = None


class CompletionChoice(_Choice):
    """One choice of a completion, or what a chunk adds to it."""

    text: str
    logprobs: Json | None = None
    finish_reason: str | None = None


class Completion(OpenAIResponse):
    """The response to a completion request."""

    id: str = Field(default_factory=partial(new_id, "cmpl"))
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(default_factory=now)
    choices: list[CompletionChoice]
    usage: Usage | None = None


class CompletionChunk(Completion):
    """A chunk of a streamed completion; OpenAI gives it the same fields."""


class EmbeddingData(ResponsePart):
    """The embedding of one text: a list, an array of numpy's, or base64 of little-endian float32."""

    index: int
    object: Literal["embedding"] = "embedding"
    embedding: Annotated[list[float] | str, BeforeValidator(_to_list)]


class Embedding(OpenAIResponse):
    """The response to an embedding request."""

    object: Literal["list"] = "list"
    data: list[EmbeddingData]
    usage: Usage = Usage()


class RerankDocument(ResponsePart):
    """A document as it was sent."""

    text: str


class RerankResult(ResponsePart):
    """The relevance of the document at `index`."""

    index: int
    relevance_score: float
    document: RerankDocument | None = None


class Rerank(OpenAIResponse):
    """The response to a rerank request, the best document first."""

    id: str = Field(default_factory=partial(new_id, "rerank"))
    results: list[RerankResult]
    usage: Usage = Usage()


# https://platform.openai.com/docs/guides/error-codes, and vLLM's names for the same.
_STATUSES: Mapping[str, int] = {
    "invalid_request_error": 400,
    "BadRequestError": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "NotFoundError": 404,
    "rate_limit_error": 429,
    "server_error": 500,
    "InternalServerError": 500,
    "NotImplementedError": 501,
    "service_unavailable_error": 503,
    "ServiceUnavailableError": 503,
}


class ErrorInfo(BaseModel):
    """An error: `code` is a machine-readable word, or the HTTP status."""

    model_config = ConfigDict(extra="allow")

    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: int | str | None = None


class ErrorResponse(BaseModel):
    """An error response: ``ErrorResponse(message="no", code=404)``, or with all fields under `error`."""

    error: ErrorInfo

    @model_validator(mode="before")
    @classmethod
    def _under_error(cls, value: Any) -> Any:  # Any: what the user passed
        return value if not isinstance(value, Mapping) or "error" in value else {"error": value}

    # The fields may be passed without `error`, so the signature is written by hand.
    def __init__(self, **fields: Any) -> None:  # Any: checked by pydantic
        super().__init__(**fields)

    @property
    def status(self) -> int:
        """The HTTP status: `code` if it is one, else that of `type`, else 400."""
        code = str(self.error.code)
        is_status = code.isdecimal() and 400 <= int(code) <= 599
        return int(code) if is_status else _STATUSES.get(self.error.type, 400)
