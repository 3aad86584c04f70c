"""KServe's module of this name: its classes of models for OpenAI's clients."""

from __future__ import annotations

from appliance.kserve.model import BaseKServeModel
from appliance.python_api import openai_model
from appliance.python_api.chat_adapter import ChatPrompt
from appliance.python_api.types import (
    ChatCompletion,
    ChatCompletionRequest,
    Completion,
    CompletionRequest,
    Embedding,
    EmbeddingRequest,
    ErrorResponse,
    Rerank,
    RerankRequest,
)

__all__ = [
    "ChatCompletion",
    "ChatCompletionRequest",
    "ChatPrompt",
    "Completion",
    "CompletionRequest",
    "Embedding",
    "EmbeddingRequest",
    "ErrorResponse",
    "OpenAIEncoderModel",
    "OpenAIGenerativeModel",
    "OpenAIModel",
    "Rerank",
    "RerankRequest",
]


class OpenAIModel(BaseKServeModel, openai_model.OpenAIModel):
    """A model for OpenAI's clients; it supports the operations whose methods its class overrides."""


class OpenAIGenerativeModel(OpenAIModel, openai_model.OpenAIGenerativeModel):
    """A model that generates text."""


class OpenAIEncoderModel(OpenAIModel, openai_model.OpenAIEncoderModel):
    """A model that embeds or ranks texts."""
