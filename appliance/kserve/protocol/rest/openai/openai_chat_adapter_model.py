"""KServe's module of this name."""

from __future__ import annotations

from appliance.kserve.protocol.rest.openai.openai_model import OpenAIGenerativeModel
from appliance.python_api import chat_adapter

__all__ = ["OpenAIChatAdapterModel"]


class OpenAIChatAdapterModel(OpenAIGenerativeModel, chat_adapter.OpenAIChatAdapterModel):
    """Chat by way of completions: those of an underlying model, or of its own class's `create_completion`."""
