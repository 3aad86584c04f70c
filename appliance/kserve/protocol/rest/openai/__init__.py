"""KServe's package of this name."""

from appliance.openai.proxy_model import OpenAIProxyModel
from appliance.python_api.chat_adapter import ChatPrompt, OpenAIChatAdapterModel
from appliance.python_api.openai_model import OpenAIEncoderModel, OpenAIGenerativeModel, OpenAIModel
from appliance.python_api.types import ChatCompletionRequest, CompletionRequest

__all__ = [
    "ChatCompletionRequest",
    "ChatPrompt",
    "CompletionRequest",
    "OpenAIChatAdapterModel",
    "OpenAIEncoderModel",
    "OpenAIGenerativeModel",
    "OpenAIModel",
    "OpenAIProxyModel",
]
