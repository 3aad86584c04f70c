"""
Models written in Python for OpenAI's clients: subclass one, and serve it with `appliance.ModelServer` or from a config.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from appliance.python_api.openai_model import (
    Context,
    OpenAIEncoderModel,
    OpenAIGenerativeModel,
    OpenAIModel,
)
from appliance.python_api.raw_request import RawRequest

if TYPE_CHECKING:
    from appliance.openai.proxy_model import OpenAIProxyModel
    from appliance.python_api.chat_adapter import ChatPrompt, OpenAIChatAdapterModel

__all__ = [
    "ChatPrompt",
    "Context",
    "OpenAIChatAdapterModel",
    "OpenAIEncoderModel",
    "OpenAIGenerativeModel",
    "OpenAIModel",
    "OpenAIProxyModel",
    "RawRequest",
]

_LAZY = {
    "ChatPrompt": "appliance.python_api.chat_adapter",
    "OpenAIChatAdapterModel": "appliance.python_api.chat_adapter",
    "OpenAIProxyModel": "appliance.openai.proxy_model",
}


def __getattr__(name: str) -> Any:
    # Most models need no HTTP clients and templates.
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
