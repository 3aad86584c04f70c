"""OpenAI's requests, answers and errors as objects."""

from appliance.python_api.error_response import ErrorInfo, ErrorResponse
from appliance.python_api.request_types import ChatCompletionRequest, CompletionRequest, EmbeddingRequest, RerankRequest
from appliance.python_api.response_types import (
    ChatCompletion,
    ChatCompletionChoice,
    ChatCompletionChunk,
    ChatCompletionChunkChoice,
    ChatDelta,
    ChatMessage,
    Completion,
    CompletionChoice,
    CompletionChunk,
    Embedding,
    EmbeddingData,
    Rerank,
    RerankDocument,
    RerankResult,
    Usage,
)

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
