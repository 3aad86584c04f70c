"""KServe's package of this name."""

from appliance.core.openai_types import Json
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
EmbeddingCompletionRequest = EmbeddingRequest

# Messages, their parts, and log probabilities are mappings.
ChatCompletionMessageParam = CustomChatCompletionMessageParam = ConversationMessage = Json
ChatCompletionAssistantMessageParam = ChatCompletionToolMessageParam = Json
ChatCompletionContentPartParam = ChatCompletionContentPartTextParam = Json
ChatCompletionLogProb = ChatCompletionLogProbs = ChatCompletionLogProbsContent = CompletionLogProbs = Json

__all__ = [
    "ChatCompletion",
    "ChatCompletionAssistantMessageParam",
    "ChatCompletionChoice",
    "ChatCompletionChunk",
    "ChatCompletionContentPartParam",
    "ChatCompletionContentPartTextParam",
    "ChatCompletionLogProb",
    "ChatCompletionLogProbs",
    "ChatCompletionLogProbsContent",
    "ChatCompletionMessageParam",
    "ChatCompletionRequest",
    "ChatCompletionToolMessageParam",
    "ChatMessage",
    "ChoiceDelta",
    "ChunkChoice",
    "Completion",
    "CompletionChoice",
    "CompletionChunk",
    "CompletionChunkChoice",
    "CompletionLogProbs",
    "CompletionRequest",
    "ConversationMessage",
    "CustomChatCompletionMessageParam",
    "Embedding",
    "EmbeddingCompletionRequest",
    "EmbeddingRequest",
    "EmbeddingResponseData",
    "Error",
    "ErrorResponse",
    "Rerank",
    "RerankRequest",
    "UsageInfo",
]
