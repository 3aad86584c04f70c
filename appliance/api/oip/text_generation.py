"""Texts to texts, over OpenAI's completions and chats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from appliance.api.oip.inputs import Column, Columns
from appliance.core.errors import GatewayError
from appliance.tensors import Tensor


class _Choice(msgspec.Struct):
    text: str
    index: int = 0


class Completion(msgspec.Struct):
    """What is read of a completion."""

    choices: list[_Choice]


class _Message(msgspec.Struct):
    content: str | None = None


class _ChatChoice(msgspec.Struct):
    message: _Message
    index: int = 0


class ChatCompletion(msgspec.Struct):
    """What is read of a chat completion."""

    choices: list[_ChatChoice]


def ask_completion(columns: Columns) -> Sequence[Mapping[str, Any]]:  # Any: JSON values
    """One call with all texts as its prompts."""
    prompts = columns["text_input"].texts
    return [{**columns.fields, "prompt": list(prompts) if len(prompts) != 1 else prompts[0]}]


def read_completion(columns: Columns, replies: Sequence[Completion]) -> Sequence[Tensor]:
    """`text_output`, in the shape of the input; with a dimension more where each text has several answers."""
    (reply,) = replies
    made = [choice.text for choice in sorted(reply.choices, key=lambda choice: choice.index)]
    return [_texts(columns["text_input"], made)]


def ask_chats(columns: Columns) -> Sequence[Mapping[str, Any]]:  # Any: JSON values
    """One call for each text, which is what the user says."""
    return [{**columns.fields, "messages": [{"role": "user", "content": text}]} for text in columns["text_input"].texts]


def read_chats(columns: Columns, replies: Sequence[ChatCompletion]) -> Sequence[Tensor]:
    """`text_output`, as for completions."""
    made = [
        choice.message.content or ""
        for reply in replies
        for choice in sorted(reply.choices, key=lambda choice: choice.index)
    ]
    return [_texts(columns["text_input"], made)]


def _texts(asked: Column, made: Sequence[str]) -> Tensor:
    each, left = divmod(len(made), len(asked.texts))
    if left or not each:
        raise GatewayError(f"The model gave {len(made)} answers to {len(asked.texts)} texts")
    return Tensor.of_values("text_output", "BYTES", asked.shape if each == 1 else (*asked.shape, each), made)
