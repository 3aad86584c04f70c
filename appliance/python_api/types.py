"""OpenAI's requests, responses and errors as objects, for models written in Python; unknown fields are kept.

Mappings inside of a response become objects, and unset fields are left out. The product's own responses are in
`appliance.core.openai_types`.

Source: https://platform.openai.com/docs/api-reference; rerank is Cohere's and Jina's; other request fields are vLLM's,
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from appliance.core.errors import RequestError
from appliance.core.model import ModelRequest, Operation
from appliance.core.openai_types import Json, new_id, now

__all__ = [
    "ChatCompletion",
    "ChatCompletionChoice",
    "ChatCompletionChunk",
    "ChatCompletionChunkChoice",
    "ChatCompletionRequest",
    "ChatDelta",
    "ChatMessage",
    "Completion",
    "CompletionChoice",
    "CompletionChunk",
    "CompletionRequest",
    "Embedding",
    "EmbeddingData",
    "EmbeddingRequest",
    "ErrorInfo",
    "ErrorResponse",
    "Rerank",
    "RerankDocument",
    "RerankRequest",
    "RerankResult",
    "Usage",
]


class Request(BaseModel):
    """What a client sent; unknown fields are in `model_extra`, and can be read like the others."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str | None = None
    """The name the client used; None if it sent none."""

    user: str | None = None
    """The end user, as the client calls it."""


class GenerationRequest(Request):
    """The common fields of chats and completions; None is unset."""

    stream: bool | None = False
    stream_options: Json | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = 1
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    # Fields of vLLM.
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    length_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
    structured_outputs: Json | None = None
    response_format: Json | None = None
    priority: int | None = None
    request_id: str | None = None


class ChatCompletionRequest(GenerationRequest):
    """The body of a request to `/v1/chat/completions`; messages and tools are plain mappings."""

    messages: Annotated[list[Json], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Json] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: Json | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    documents: list[Json] | None = None


class CompletionRequest(GenerationRequest):
    """The body of a request to `/v1/completions`; a prompt is text, texts, token ids, or lists of them."""

    prompt: str | list[str] | list[int] | list[list[int]]
    suffix: str | None = None
    logprobs: int | None = None
    best_of: int | None = None


class EmbeddingRequest(Request):
    """The body of a request to `/v1/embeddings`.

    Return vectors as numbers, whatever `encoding_format` says: they are encoded as the client requests.
    """

    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: str | None = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    truncate_prompt_tokens: int | None = None

    @property
    def texts(self) -> list[str]:
        """The texts to embed, one or several; empty if the client sent token ids."""
        inputs = [self.input] if isinstance(self.input, str) else self.input
        return [each for each in inputs if isinstance(each, str)]


class RerankRequest(Request):
    """The body of a request to `/v1/rerank`; a `top_n` of None or 0 is all documents."""

    query: str
    documents: Annotated[list[str | Json], Field(min_length=1)]
    top_n: Annotated[int, Field(ge=0)] | None = None
    return_documents: bool | None = None
    truncate_prompt_tokens: int | None = None

    @property
    def texts(self) -> list[str]:
        """The documents as texts."""
        return [each if isinstance(each, str) else str(each.get("text", "")) for each in self.documents]


_CLASSES: Mapping[Operation, type[Request]] = {
    Operation.CHAT_COMPLETION: ChatCompletionRequest,
    Operation.COMPLETION: CompletionRequest,
    Operation.EMBEDDING: EmbeddingRequest,
    Operation.RERANK: RerankRequest,
}


def decode_request(request: ModelRequest) -> Request:
    """Return the body of a request as an object.

    Raises:
        RequestError: it is not one.
    """
    try:
        return _CLASSES[request.operation].model_validate_json(request.body)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False)[0]
    # The rest of the location is the type that was tried.
    param = str(detail["loc"][0]) if detail["loc"] else None
    if detail["type"] == "missing":
        raise RequestError(f"{param} is missing; it must be given", param=param)
    raise RequestError(f"{param or 'The body'} is wrong: {detail['msg']}", param=param)


class _Array(Protocol):
    """The common method of numpy's arrays and torch's tensors."""

    def tolist(self) -> list[float]: ...


def _to_list(vector: _Array | list[float] | str) -> list[float] | str:
    return vector if isinstance(vector, list | str) else vector.tolist()


class ReadableAsDict(BaseModel):
    """An object whose fields can be read as keys, too: ``choice["text"]``, ``dict(usage)``."""

    def __getitem__(self, name: str) -> Any:  # Any: of any field
        if name in self.keys():
            return getattr(self, name)
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def keys(self) -> list[str]:
        """Return the names of the fields."""
        return [*type(self).model_fields, *(self.model_extra or ())]

    def get(self, name: str, default: Any = None) -> Any:  # Any: of any field
        """Return a field, `default` if there is none of this name."""
        return getattr(self, name) if name in self.keys() else default

    def items(self) -> list[tuple[str, Any]]:  # Any: of any field
        """Return names and values of the fields."""
        return [(name, self[name]) for name in self.keys()]


class ResponsePart(ReadableAsDict):
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
    """The response to a rerank request, the best document first; `data` is another name of `results`."""

    id: str = Field(default_factory=partial(new_id, "rerank"))
    object: Literal["list"] | None = None
    results: Annotated[list[RerankResult], Field(validation_alias=AliasChoices("results", "data"))]
    usage: Usage = Usage()

    # The results may be passed under either name, so the signature is written by hand.
    def __init__(self, **fields: Any) -> None:  # Any: checked by pydantic
        super().__init__(**fields)

    @property
    def data(self) -> list[RerankResult]:
        """The results."""
        return self.results


# https://platform.openai.com/docs/guides/error-codes, and vLLM's names for the same.
_STATUSES: Mapping[str, int] = {
    "authentication_error": 401,
    "permission_error": 403,
    **dict.fromkeys(("not_found_error", "NotFoundError"), 404),
    "rate_limit_error": 429,
    **dict.fromkeys(("server_error", "InternalServerError"), 500),
    "NotImplementedError": 501,
    **dict.fromkeys(("service_unavailable_error", "ServiceUnavailableError"), 503),
}


class ErrorInfo(ReadableAsDict):
    """An error: `code` is a machine-readable word, or the HTTP status."""

    model_config = ConfigDict(extra="allow")

    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: int | str | None = None


class ErrorResponse(ReadableAsDict):
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
