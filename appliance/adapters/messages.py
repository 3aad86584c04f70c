"""OpenAI's messages as chat templates take them: content as text, arguments of tool calls as mappings.

Source: https://platform.openai.com/docs/api-reference/chat/create and what templates expect,
https://huggingface.co/docs/transformers/chat_templating.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from appliance.core.errors import RequestError

Json = dict[str, Any]  # Any: JSON values

_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal"})


def for_template(messages: Any, *, knows_developer: bool) -> list[Json]:  # Any: JSON values
    """The messages of a request, each with its content as one text.

    Raises:
        RequestError: they are no messages, or hold what is not text.
    """
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages is missing; it must be a list of one message or more", param="messages")
    return [_message(message, f"messages[{index}]", knows_developer) for index, message in enumerate(messages)]


def with_texts(messages: Any) -> Any:  # Any: JSON values
    """The messages as they are, but for content in parts, which becomes one text.

    Raises:
        RequestError: content is no text, or has a part that is none.
    """
    if not isinstance(messages, list):
        return messages
    return [
        message | {"content": _text(message["content"], f"messages[{index}].content")}
        if isinstance(message, dict) and message.get("content") is not None
        else message
        for index, message in enumerate(messages)
    ]


def _message(message: Any, where: str, knows_developer: bool) -> Json:  # Any: JSON values
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RequestError(f"{where} must be a mapping with a role", param=where)
    made = message | {"content": _text(message.get("content"), f"{where}.content")}
    if message["role"] == "developer" and not knows_developer:
        # OpenAI's newer word for the same thing, which few templates have.
        made["role"] = "system"
    if message.get("tool_calls"):
        made["tool_calls"] = [_tool_call(call, f"{where}.tool_calls") for call in message["tool_calls"]]
    else:
        made.pop("tool_calls", None)
    return made


def _text(content: Any, where: str) -> str:  # Any: JSON values
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise RequestError(f"{where} must be a text, or a list of parts", param=where)
    return "\n".join(_part(part, where) for part in content)


def _part(part: Any, where: str) -> str:  # Any: JSON values
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise RequestError(f"{where} has a part that is no mapping with a type, such as text", param=where)
    if kind not in _TEXT_PARTS:
        raise RequestError(f"{where} has a part of type {kind[:80]!r}; this model takes only text", param=where)
    key = "refusal" if kind == "refusal" else "text"
    text = part.get(key)
    if not isinstance(text, str):
        raise RequestError(f"{where} has a part of type {kind!r} whose {key} is no text", param=where)
    return text


def _tool_call(call: Any, where: str) -> Json:  # Any: JSON values
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise RequestError(f"{where} has a call without a function", param=where)
    return {**call, "function": function | {"arguments": _arguments(function.get("arguments"), where)}}


def _arguments(arguments: Any, where: str) -> Mapping[str, Any]:  # Any: JSON values
    """The arguments as a mapping, which templates write in their own way; OpenAI has them as JSON in a text."""
    try:
        made = json.loads(arguments or "{}") if isinstance(arguments, str | None) else arguments
    except ValueError as error:
        raise RequestError(f"{where} has arguments that are no JSON: {error}", param=where) from error
    if not isinstance(made, dict):
        raise RequestError(f"{where} has arguments that are no JSON object", param=where)
    return made
