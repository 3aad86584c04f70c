"""A completion as a chat completion.

Source: https://platform.openai.com/docs/api-reference/chat/object
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from appliance.adapters.logprobs import chat_logprobs
from appliance.adapters.messages import Json
from appliance.adapters.tool_calls import split
from appliance.config.adapters import ChatConfig, ToolCallsConfig
from appliance.core.errors import GatewayError

_OF_CHOICE = frozenset({"text", "index", "logprobs", "finish_reason"})


@dataclass(frozen=True, slots=True)
class ChatResponseBuilder:
    """What the client knows that the completion does not: the model's name, the role, the alternatives it asked for."""

    model: str
    role: str
    top_logprobs: int = 0
    marks: ToolCallsConfig | None = None
    """How tools are called in the text; None where none may be."""

    @classmethod
    def of(cls, request: Json, model: str, config: ChatConfig) -> ChatResponseBuilder:
        """The face that a chat request wants to see."""
        may_call = request.get("tools") and request.get("tool_choice") != "none"
        return cls(
            model, config.response_role, request.get("top_logprobs") or 0, config.tool_calls if may_call else None
        )


def chat_completion(completion: Json, face: ChatResponseBuilder) -> Json:
    """The whole answer; fields that only the target knows are kept.

    Raises:
        GatewayError: it is no completion.
    """
    choices = choices_of(completion)
    if not choices:
        raise GatewayError("The target's answer is no completion: it has no choices")
    made = completion | {"id": chat_id(completion.get("id")), "object": "chat.completion", "model": face.model}
    return made | {"choices": [_choice(choice, index, face) for index, choice in enumerate(choices)]}


def choices_of(answer: Json) -> list[Json]:
    """The choices of a completion, or of a chunk of one.

    Raises:
        GatewayError: they are none.
    """
    choices = answer.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise GatewayError("The target's answer is no completion: its choices are no list of mappings")
    return choices


def _choice(choice: Json, index: int, face: ChatResponseBuilder) -> Json:
    text: str = choice.get("text") or ""
    calls: list[Json] = []
    if face.marks is not None:
        text, calls = split(text, face.marks)
    message = {"role": face.role, "content": text or None if calls else text, "refusal": None}
    return {
        "index": choice.get("index", index),
        "message": message | ({"tool_calls": calls} if calls else {}),
        "logprobs": chat_logprobs(choice.get("logprobs"), face.top_logprobs),
        "finish_reason": reason_of(choice.get("finish_reason") or "stop", has_called=bool(calls)),
        **extras_of(choice),
    }


def reason_of(reason: str, *, has_called: bool) -> str:
    """Why a choice ended, as chat has it."""
    return "tool_calls" if has_called and reason == "stop" else reason


def extras_of(choice: Json) -> Json:
    """What only the target knows of a choice."""
    return {name: value for name, value in choice.items() if name not in _OF_CHOICE}


def chat_id(completion_id: Any) -> str:  # Any: JSON values
    """The id of a chat completion that was made of a completion."""
    rest = str(completion_id).removeprefix("cmpl-") if completion_id else uuid.uuid4().hex
    return f"chatcmpl-{rest}"
