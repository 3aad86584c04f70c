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
    RawRequest,
)

if TYPE_CHECKING:
    from appliance.python_api.chat_adapter import ChatPrompt, OpenAIChatAdapterModel
    from appliance.python_api.proxy_model import OpenAIProxyModel

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

_PLACES = {
    "ChatPrompt": "appliance.python_api.chat_adapter",
    "OpenAIChatAdapterModel": "appliance.python_api.chat_adapter",
    "OpenAIProxyModel": "appliance.python_api.proxy_model",
}


def __getattr__(name: str) -> Any:
    # HTTP clients and templates are no business of a model that computes by itself.
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
