"""Tool calls in a model's text: found by their marks, and left alone where they are none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.adapters.chat_response import ToolCallParser, split_tool_calls
from appliance.config.adapters import ToolCallsConfig

HERMES = ToolCallsConfig()
MISTRAL = ToolCallsConfig(begin="[TOOL_CALLS]", end=None)
LLAMA = ToolCallsConfig(begin="<|python_tag|>", end="<|eom_id|>")


def _named(calls: list[Any]) -> list[tuple[str, Any]]:
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


CASES = [
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>', "", [("f", {"a": 1})]),
    (
        HERMES,
        'Yes.\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n<tool_call>{"name": "g"}</tool_call> Done',
        "Yes.\n\n Done",
        [("f", {}), ("g", {})],
    ),
    (HERMES, '<tool_call>{"name": "f", "arguments": "{}"}', "", [("f", {})]),
    (MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {"ü": 1}}, {"name": "g"}]', "", [("f", {"ü": 1}), ("g", {})]),
    (LLAMA, '<|python_tag|>{"name": "f", "parameters": {"a": []}}<|eom_id|>', "", [("f", {"a": []})]),
    (HERMES, "no call at all <tool_cal", "no call at all <tool_cal", []),
    (HERMES, "<tool_call>no JSON</tool_call> x", "<tool_call>no JSON</tool_call> x", []),
    (HERMES, '<tool_call>{"nam": 1}</tool_call>', '<tool_call>{"nam": 1}</tool_call>', []),
    (MISTRAL, "[TOOL_CALLS][]", "[TOOL_CALLS][]", []),
    (HERMES, "", "", []),
]


@pytest.mark.parametrize(("marks", "text", "said", "calls"), CASES)
def test_tool_calls_are_found_in_text(marks: ToolCallsConfig, text: str, said: str, calls: list[Any]) -> None:
    """Whatever the model's marks; what is no call stays in the text, marks and all."""
    rest, made = split_tool_calls(text, marks)

    assert rest == said
    assert _named(made) == calls
    assert len({call["id"] for call in made}) == len(made)


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize(("marks", "text", "said", "calls"), CASES)
def test_tool_calls_are_found_in_pieces_of_text(
    marks: ToolCallsConfig, text: str, said: str, calls: list[Any], size: int
) -> None:
    """The same, however the text is cut."""
    reader = ToolCallParser(marks)
    parts = [part for start in range(0, len(text), size) for part in reader.feed(text[start : start + size])]
    parts += reader.finish()

    assert "".join(part for part in parts if isinstance(part, str)).strip() == said
    assert _named([part for part in parts if not isinstance(part, str)]) == calls
