"""KServe's package of this name."""

from appliance.kserve.protocol.rest.openai.openai_chat_adapter_model import OpenAIChatAdapterModel
from appliance.kserve.protocol.rest.openai.openai_model import (
    ChatCompletionRequest,
    ChatPrompt,
    CompletionRequest,
    OpenAIEncoderModel,
    OpenAIGenerativeModel,
    OpenAIModel,
)
from appliance.kserve.protocol.rest.openai.openai_proxy_model import OpenAIProxyModel
from appliance.kserve.protocol.rest.openai.types import ChatCompletionMessageParam

__all__ = [
    "ChatCompletionMessageParam",
    "ChatCompletionRequest",
    "ChatPrompt",
    "CompletionRequest",
    "OpenAIChatAdapterModel",
    "OpenAIEncoderModel",
    "OpenAIGenerativeModel",
    "OpenAIModel",
    "OpenAIProxyModel",
]
