"""OpenAI's response objects as the product writes and reads them, and its smallest requests.

The responses are msgspec's, which writes embeddings in a third of pydantic's time and reads a completion in a fifth.
Reading skips unknown fields, and requires only those without a default. The classes for users of the Python API, which
keep unknown fields, are in `appliance.python_api.types`.

Source: https://platform.openai.com/docs/api-reference; rerank is Cohere's and Jina's,
https://docs.cohere.com/reference/rerank and https://api.jina.ai/redoc; classification is vLLM's ``/classify``, with the
name of every label.
"""

from __future__ import annotations

import base64
import struct
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from appliance.core.errors import RequestError
from appliance.core.model import Operation

Json = dict[str, Any]  # Any: JSON values

# Of metadata: entries, and characters.
_MAX_METADATA, _MAX_KEY, _MAX_VALUE = 16, 64, 512

SMALLEST_REQUESTS: Mapping[Operation, Json] = {
    Operation.CHAT_COMPLETION: {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "temperature": 0},
    Operation.COMPLETION: {"prompt": "Hello", "max_tokens": 1, "temperature": 0},
    Operation.EMBEDDING: {"input": "Hello"},
    Operation.RERANK: {"query": "Hello", "documents": ["Hello"]},
}
"""A warm-up request is the first one that a model supports."""


def new_id(prefix: str) -> str:
    """Return an id for a new response."""
    return f"{prefix}-{uuid.uuid4().hex}"


def now() -> int:
    """Return the time of creation for a new response."""
    return int(time.time())


def require_small_metadata(metadata: Mapping[str, str] | None) -> None:
    """Raise RequestError if the metadata of an object is larger than OpenAI allows.

    Source: https://platform.openai.com/docs/api-reference/batch/create#batch-create-metadata
    """
    pairs = metadata or {}
    if len(pairs) > _MAX_METADATA or any(len(k) > _MAX_KEY or len(v) > _MAX_VALUE for k, v in pairs.items()):
        limits = f"{_MAX_METADATA} entries with keys of {_MAX_KEY} and values of {_MAX_VALUE} characters"
        raise RequestError(f"metadata is too large; it may have {limits}", param="metadata")


def encode_vector(vector: Sequence[float] | bytes) -> str:
    """Return a vector, or its bytes as little-endian float32, in base64; raises ValueError if it is not of numbers."""
    try:
        data = vector if isinstance(vector, bytes) else struct.pack(f"<{len(vector)}f", *vector)
    except (struct.error, OverflowError) as error:
        raise ValueError(str(error)) from error
    return base64.b64encode(data).decode()


class Usage(Struct):
    """Numbers of tokens; pooling generates none."""

    prompt_tokens: int | UnsetType | None = UNSET
    completion_tokens: int | UnsetType | None = UNSET
    total_tokens: int | UnsetType | None = UNSET


class CompletionChoice(Struct, kw_only=True):
    """One choice of a completion, or of a chunk of it."""

    index: int = 0
    text: str
    logprobs: Json | None = None
    finish_reason: str | None = None


class Completion(Struct, kw_only=True):
    """A completion, or a chunk of it."""

    id: str | None = None
    object: str = "text_completion"
    created: float | None = None
    model: str | None = None
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET


class ChatMessage(Struct, kw_only=True):
    """A message of the model."""

    role: str = "assistant"
    content: str | None = None


class ChatCompletionChoice(Struct, kw_only=True):
    """One choice of a chat completion."""

    index: int = 0
    message: ChatMessage
    finish_reason: str | None = None


class ChatCompletion(Struct, kw_only=True):
    """A chat completion."""

    id: str | None = None
    object: str = "chat.completion"
    created: float | None = None
    model: str | None = None
    choices: list[ChatCompletionChoice]
    usage: Usage | UnsetType | None = UNSET


class EmbeddingData(Struct, kw_only=True):
    """The embedding of one input: numbers, or base64 of little-endian float32."""

    object: str = "embedding"
    index: int = 0
    embedding: list[float] | str


class Embeddings(Struct, kw_only=True):
    """The embeddings of all inputs, in their order."""

    object: str = "list"
    id: str | UnsetType = UNSET
    created: float | UnsetType = UNSET
    model: str | None = None
    data: list[EmbeddingData]
    usage: Usage | None = None


class RerankDocument(Struct):
    """A document as it was sent."""

    text: str | None = None


class RerankResult(Struct, kw_only=True):
    """The relevance of the document at `index`."""

    index: int
    relevance_score: float
    document: RerankDocument | str | UnsetType | None = UNSET


class Rerank(Struct, kw_only=True):
    """Documents by relevance, the best one first."""

    id: str | None = None
    model: str | None = None
    results: list[RerankResult]
    usage: Usage | None = None


class TokenClass(Struct, kw_only=True):
    """The class of the text from `start` to before `end`, in characters; both are None if the client sent token ids."""

    token: int | None = None
    start: int | None = None
    end: int | None = None
    label: str
    probability: float


class Classification(Struct, kw_only=True):
    """The likeliest label of one text, and the probabilities of all in the model's order; or the classes of its tokens.

    Special tokens, which stand for no text, are left out.
    """

    index: int = 0
    label: str | UnsetType | None = UNSET
    probs: list[float] | UnsetType = UNSET
    num_classes: int | UnsetType = UNSET
    probabilities: dict[str, float] | UnsetType = UNSET
    tokens: list[TokenClass] | UnsetType | None = UNSET


class Classifications(Struct, kw_only=True):
    """The classes of all inputs, in their order."""

    object: str = "list"
    id: str | UnsetType = UNSET
    created: float | UnsetType = UNSET
    model: str | None = None
    data: list[Classification]
    usage: Usage | None = None
