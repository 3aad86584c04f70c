"""Requests and responses of the OpenAI routes, for the document.

Models get the body of a request unchanged, so these classes list the usual fields; a model may take others.
Source: https://platform.openai.com/docs/api-reference; messages are Anthropic's
(https://docs.anthropic.com/en/api/messages), the rest vLLM's
(https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from litestar.datastructures import UploadFile
from litestar.params import JSONBody, MultipartBody
from msgspec import Struct

from appliance.core.model import MULTIPART_OPERATIONS, Operation
from appliance.core.openai_types import Classifications, Json
from appliance.python_api.types import (
    ChatCompletion,
    ChatCompletionRequest,
    Completion,
    CompletionRequest,
    Embedding,
    EmbeddingRequest,
    Rerank,
    RerankRequest,
    Usage,
)


class _Request(Struct, kw_only=True):
    model: str | None = None


class ResponseRequest(_Request):
    """Create a response: `input` is a text or a list of items."""

    input: str | list[Json]
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    tools: list[Json] | None = None
    tool_choice: str | Json | None = None
    text: Json | None = None
    reasoning: Json | None = None


class ModelAnswer(Struct, kw_only=True):
    """A response; `output` has its messages and tool calls."""

    id: str
    object: Literal["response"]
    created_at: float
    model: str
    status: str
    output: list[Json]
    usage: Json | None = None


class CountTokensRequest(_Request):
    """Count the input tokens of a message."""

    messages: list[Json]
    system: str | list[Json] | None = None
    tools: list[Json] | None = None
    tool_choice: Json | None = None


class MessageRequest(CountTokensRequest, kw_only=True):
    """Create a message."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None


class Message(Struct, kw_only=True):
    """A message of the model."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Json]
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: Json


class InputTokens(Struct):
    """The number of input tokens."""

    input_tokens: int


class TokenizeRequest(_Request):
    """Tokenize a `prompt`, or `messages` with the chat template."""

    prompt: str | None = None
    messages: list[Json] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class Tokens(Struct):
    """Token ids."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(_Request):
    """Turn token ids into text."""

    tokens: list[int]


class DetokenizedText(Struct):
    """The text of the tokens."""

    prompt: str


class ScoreRequest(_Request):
    """Score pairs of texts: one or several `queries`, and a document for each."""

    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None


class Score(Struct):
    """The similarity or relevance of one pair."""

    index: int
    score: float
    object: str = "score"


class Scores(Struct, kw_only=True):
    """The scores of all pairs, in their order."""

    id: str
    object: str
    created: int
    model: str
    data: list[Score]
    usage: Usage


class InputRequest(_Request):
    """Classify, pool or moderate inputs: texts, token ids, or parts with images."""

    input: str | list[Any]  # Any: texts, token ids, lists of them, or parts
    truncate_prompt_tokens: int | None = None


class AudioForm(_Request):
    """Transcribe or translate an audio file."""

    file: UploadFile
    language: str | None = None
    prompt: str | None = None
    response_format: str | None = None
    temperature: float | None = None
    stream: bool | None = None


class Transcription(Struct):
    """The text of an audio file."""

    text: str


class SpeechRequest(_Request):
    """Turn text into speech."""

    input: str
    voice: str | Json
    response_format: str | None = None
    speed: float | None = None
    instructions: str | None = None


class ImageRequest(_Request):
    """Generate images."""

    prompt: str
    n: int | None = None
    size: str | None = None
    quality: str | None = None
    response_format: str | None = None


class ImageForm(_Request):
    """Edit or vary an image; only edits have a prompt and a mask."""

    image: UploadFile
    prompt: str | None = None
    mask: UploadFile | None = None
    n: int | None = None
    size: str | None = None
    response_format: str | None = None


_TYPES: Mapping[Operation, tuple[Any, Any]] = {  # Any: types
    Operation.CHAT_COMPLETION: (ChatCompletionRequest, ChatCompletion),
    Operation.COMPLETION: (CompletionRequest, Completion),
    Operation.RESPONSE: (ResponseRequest, ModelAnswer),
    Operation.MESSAGE: (MessageRequest, Message),
    Operation.COUNT_TOKENS: (CountTokensRequest, InputTokens),
    Operation.TOKENIZE: (TokenizeRequest, Tokens),
    Operation.DETOKENIZE: (DetokenizeRequest, DetokenizedText),
    Operation.EMBEDDING: (EmbeddingRequest, Embedding),
    Operation.RERANK: (RerankRequest, Rerank),
    Operation.SCORE: (ScoreRequest, Scores),
    Operation.CLASSIFICATION: (InputRequest, Classifications),
    Operation.POOLING: (InputRequest, Json),
    Operation.MODERATION: (InputRequest, Json),
    Operation.TRANSCRIPTION: (AudioForm, Transcription),
    Operation.TRANSLATION: (AudioForm, Transcription),
    # Speech is audio.
    Operation.SPEECH: (SpeechRequest, None),
    Operation.IMAGE: (ImageRequest, Json),
    Operation.IMAGE_EDIT: (ImageForm, Json),
    Operation.IMAGE_VARIATION: (ImageForm, Json),
}


def types_of(operation: Operation) -> tuple[Any, Any]:  # Any: types
    """Return the types of an operation's request and response; a response of None is not JSON."""
    request, response = _TYPES[operation]
    body = MultipartBody if operation in MULTIPART_OPERATIONS else JSONBody
    return body[request], response
