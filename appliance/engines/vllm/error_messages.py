"""What vLLM says of options of its own, and which field it means, as clients are told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from appliance.core.errors import RequestError

# By what a message has in it: the field at fault, and what is said instead.
_OTHER_WORDS = (
    (
        re.compile(r"tool[-_ ]call[-_ ]parser|auto[-_]tool[-_]choice", re.IGNORECASE),
        "tool_choice",
        "tool_choice must be none where there are tools: the config of this model sets no tool_call_parser",
    ),
    (
        re.compile(r"Template\.render\(\) got multiple values for keyword argument '(\w+)'"),
        "chat_template_kwargs",
        r"chat_template_kwargs must not have \1, which is set already",
    ),
    (
        re.compile(r"default chat template is no longer allowed"),
        None,
        "The model has no chat template, so it takes no messages; send a text as prompt or input",
    ),
)

# What vLLM calls the text that it could not fit, which no client ever sent.
ITS_NAMES = frozenset({"input_text", "input_tokens"})

# The prompt of a request that has an input too is the name of a template.
_TEXTS = ("messages", "input", "prompt")

_FIRST_WORD = re.compile(r"[`'\"]?(\w+)[`'\"]?(?:\.\w+)* ")


def reworded(message: str) -> tuple[str, str | None] | None:
    """What to say instead of the message, and the field at fault; None where the message is for clients."""
    for pattern, param, text in _OTHER_WORDS:
        if found := pattern.search(message):
            return found.expand(text), param
    return None


def field_named(message: str, fields: Mapping[str, object]) -> str | None:
    """The field that a message begins with; None where it begins otherwise."""
    found = _FIRST_WORD.match(message)
    if found is not None and found[1] in fields:
        return found[1]
    return "structured_outputs" if "for structured outputs" in message and "structured_outputs" in fields else None


def with_field(error: RequestError, request: Any) -> RequestError:  # Any: one of vLLM's request types
    """The error, its `param` being a field that this request has."""
    if isinstance(request, BaseModel):
        fields = type(request).model_fields
        error.param = _field(error.param, request, fields) or field_named(str(error), fields)
    return error


def _field(param: str | None, request: BaseModel, fields: Mapping[str, object]) -> str | None:
    if param in ITS_NAMES:
        return next((name for name in _TEXTS if name in fields), None)
    if param == "logprobs" and getattr(request, "top_logprobs", None):
        return "top_logprobs"
    if param == "response_format" and getattr(request, "response_format", None) is None:
        if getattr(request, "structured_outputs", None) is not None:
            return "structured_outputs"
        if getattr(getattr(request, "text", None), "format", None) is not None:
            return "text.format"
    return param
