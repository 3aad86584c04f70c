"""
OpenAI's requests, answers and errors as objects.
"""

from appliance.python_model.answers import (
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
from appliance.python_model.error_response import ErrorInfo, ErrorResponse
from appliance.python_model.requests import ChatCompletionRequest, CompletionRequest, EmbeddingRequest, RerankRequest

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
