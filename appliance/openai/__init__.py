"""
Models written in Python for OpenAI's clients: subclass one, and serve it with `appliance.ModelServer` or from a config.
"""

from appliance.python_model.openai_model import (
    Context,
    OpenAIEncoderModel,
    OpenAIGenerativeModel,
    OpenAIModel,
    RawRequest,
)

__all__ = [
    "Context",
    "OpenAIEncoderModel",
    "OpenAIGenerativeModel",
    "OpenAIModel",
    "RawRequest",
]
