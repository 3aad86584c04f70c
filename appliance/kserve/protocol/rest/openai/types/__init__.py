"""KServe's package of this name."""

from appliance.python_api.types import (
    ChatCompletion,
    ChatCompletionChoice,
    ChatCompletionChunk,
    ChatCompletionChunkChoice,
    ChatCompletionRequest,
    ChatDelta,
    ChatMessage,
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionRequest,
    Embedding,
    EmbeddingData,
    EmbeddingRequest,
    ErrorInfo,
    ErrorResponse,
    Rerank,
    RerankRequest,
    Usage,
)

ChoiceDelta = ChatDelta
ChunkChoice = ChatCompletionChunkChoice
CompletionChunkChoice = CompletionChoice
EmbeddingResponseData = EmbeddingData
Error = ErrorInfo
UsageInfo = Usage

__all__ = [
    "ChatCompletion",
    "ChatCompletionChoice",
    "ChatCompletionChunk",
    "ChatCompletionRequest",
    "ChatMessage",
    "ChoiceDelta",
    "ChunkChoice",
    "Completion",
    "CompletionChoice",
    "CompletionChunk",
    "CompletionChunkChoice",
    "CompletionRequest",
    "Embedding",
    "EmbeddingRequest",
    "EmbeddingResponseData",
    "Error",
    "ErrorResponse",
    "Rerank",
    "RerankRequest",
    "UsageInfo",
]
