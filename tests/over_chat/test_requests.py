"""Requests of other protocols as chat completions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.core.errors import RequestError
from appliance.core.model import Operation
from appliance.over_chat import translate

PNG = "iVBORw0KGgo="
TOOL_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def _chat(operation: Operation, *unsupported: str, **body: Any) -> dict[str, Any]:
    return translate(operation, json.dumps(body).encode(), "ours", unsupported).request


def test_a_conversation_of_messages_with_tools_and_images_is_a_chat() -> None:
    """Results of tools follow their calls, thinking is left out, and images of results go to the user's message."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    result = [{"type": "text", "text": "22 C", "cache_control": {"type": "ephemeral"}}, image]
    request = _chat(
        Operation.MESSAGE,
        model="ours",
        max_tokens=9,
        system=[{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}, image]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}},
                    {"type": "tool_use", "id": "t2", "name": "weather", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": result},
                    {"type": "tool_result", "tool_use_id": "t2", "content": "no", "is_error": True},
                    {"type": "text", "text": "And now?"},
                ],
            },
        ],
        tools=[{"name": "weather", "description": "d", "input_schema": TOOL_SCHEMA}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        stop_sequences=["END"],
        temperature=0.5,
        metadata={"user_id": "u"},
        thinking={"type": "enabled", "budget_tokens": 1024},
        output_config={"effort": "high", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    )

    image_part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    schema = {"name": "output", "schema": {"type": "object"}, "strict": True}
    assert request == {
        "messages": [
            {"role": "system", "content": "Be brief.\nBe kind."},
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}, image_part]},
            {
                "role": "assistant",
                "content": "I look.",
                "tool_calls": [
                    {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}},
                    {"id": "t2", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
                ],
            },
            {"role": "tool", "tool_call_id": "t1", "content": "22 C"},
            {"role": "tool", "tool_call_id": "t2", "content": "Error: no"},
            {"role": "user", "content": [image_part, {"type": "text", "text": "And now?"}]},
        ],
        "stop": ["END"],
        "temperature": 0.5,
        "response_format": {"type": "json_schema", "json_schema": schema},
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": TOOL_SCHEMA, "description": "d"}}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": 9,
    }


def test_a_history_of_responses_is_a_chat() -> None:
    """As coding agents send it: messages without a type, parallel calls, custom tools, reasoning, null statuses."""
    request = _chat(
        Operation.RESPONSE,
        instructions="Be brief.",
        input=[
            {"role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]},
            {"role": "user", "content": "Weather?", "status": None},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
            {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "weather"}},
            {"role": "assistant", "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}", "status": None},
            {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": "*** Begin"},
            {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "22 C"}]},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": "done"},
            {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": "http://i/1.png"}]},
        ],
        tools=[
            {"type": "function", "name": "weather", "parameters": TOOL_SCHEMA, "strict": False},
            {"type": "custom", "name": "patch", "format": {"type": "grammar"}},
        ],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=True,
        max_output_tokens=9,
        reasoning={"effort": "low", "summary": "auto"},
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        include=["reasoning.encrypted_content"],
        store=False,
        stream=True,
    )

    def call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
        return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}

    custom = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
    assert request == {
        "messages": [
            {"role": "system", "content": "Be brief.\n\nBe kind."},
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": "I look.",
                "tool_calls": [call("c1", "weather", "{}"), call("c2", "patch", '{"input":"*** Begin"}')],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "22 C"},
            {"role": "tool", "tool_call_id": "c2", "content": "done"},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://i/1.png"}}]},
        ],
        "tools": [
            {"type": "function", "function": {"name": "weather", "parameters": TOOL_SCHEMA, "strict": False}},
            {"type": "function", "function": {"name": "patch", "parameters": custom}},
        ],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": True,
        "max_tokens": 9,
        "reasoning_effort": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_only_allowed_tools_are_sent() -> None:
    """A list of allowed tools selects among them; without tools there is no choice."""
    tools = [{"type": "function", "name": name} for name in ("a", "b")]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "b"}]}
    some = _chat(Operation.RESPONSE, input="hi", tools=tools, tool_choice=choice)
    none = _chat(Operation.RESPONSE, input="hi", tools=[], tool_choice="auto")

    assert [each["function"]["name"] for each in some["tools"]] == ["b"]
    assert some["tool_choice"] == "required"
    assert none == {"messages": [{"role": "user", "content": "hi"}]}


def test_fields_that_an_upstream_does_not_take_are_not_sent() -> None:
    """The limit of tokens has another name then, and the usage of streams is not asked for."""
    hello = [{"role": "user", "content": "hi"}]
    request = _chat(Operation.MESSAGE, "max_tokens", "stream_options", messages=hello, max_tokens=9, stream=True)
    count = _chat(Operation.COUNT_TOKENS, messages=hello)

    assert request == {"messages": hello, "max_completion_tokens": 9, "stream": True}
    assert count == {"messages": hello, "max_tokens": 1}


HELLO = {"messages": [{"role": "user", "content": "hi"}]}
REFUSED: list[tuple[Operation, dict[str, Any], str, str]] = [
    (
        Operation.MESSAGE,
        {"messages": [{"role": "user", "content": [{"type": "document"}]}]},
        "messages[0].content[0]",
        "leave it out",
    ),
    (
        Operation.MESSAGE,
        HELLO | {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        "tools[0]",
        "leave it out",
    ),
    (Operation.MESSAGE, HELLO | {"mcp_servers": [{}]}, "mcp_servers", "leave it out"),
    (Operation.MESSAGE, {"messages": "hi"}, "messages", "Expected `array`"),
    (Operation.MESSAGE, {}, "", "missing required field `messages`"),
    (Operation.RESPONSE, {"input": [{"type": "compaction"}]}, "input[0]", "leave it out"),
    (Operation.RESPONSE, {"input": "hi", "tools": [{"type": "web_search"}]}, "tools[0]", "leave it out"),
    (Operation.RESPONSE, {"input": "hi", "previous_response_id": "resp_1"}, "previous_response_id", "leave it out"),
    (Operation.RESPONSE, {"input": "hi", "background": True}, "background", "leave it out"),
    (Operation.RESPONSE, {"input": "hi", "top_logprobs": 2}, "top_logprobs", "leave it out"),
    (Operation.RESPONSE, {"input": 3}, "input", "Expected"),
]


@pytest.mark.parametrize(("operation", "body", "param", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_has_no_counterpart_is_refused(
    operation: Operation, body: dict[str, Any], param: str, message: str
) -> None:
    """The error names the field."""
    with pytest.raises(RequestError) as raised:
        _chat(operation, **body)

    assert (raised.value.status, raised.value.param or "") == (400, param)
    assert message in str(raised.value)


@pytest.mark.parametrize("tools", [None, [{"name": "other", "input_schema": {}}]])
def test_a_chosen_tool_must_be_one_of_the_request(tools: Any) -> None:
    """The upstream would answer as if none were chosen, or with an error of its own."""
    body: Any = {"model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": "a"}]}
    body |= {"tools": tools, "tool_choice": {"type": "tool", "name": "nope"}}

    with pytest.raises(RequestError, match="'nope', the name of no tool") as raised:
        translate(Operation.MESSAGE, json.dumps(body).encode(), "ours")
    assert (raised.value.status, raised.value.param) == (400, "tool_choice")


def test_a_body_that_is_no_object_is_refused() -> None:
    """As everywhere."""
    with pytest.raises(RequestError, match="not a request"):
        translate(Operation.MESSAGE, b"[1]", "ours")


RECORDINGS = Path(__file__).parent.parent / "serving" / "agents"
OPERATIONS = {
    "/v1/messages": Operation.MESSAGE,
    "/v1/messages/count_tokens": Operation.COUNT_TOKENS,
    "/v1/responses": Operation.RESPONSE,
}


@pytest.mark.parametrize("file", sorted(RECORDINGS.glob("*.json")), ids=lambda file: file.stem)
def test_what_agents_send_to_a_model_here_can_be_sent_over_chats(file: Path) -> None:
    """What our engine reads has a counterpart in chat completions."""
    recordings = [each for each in json.loads(file.read_text(encoding="utf-8")) if "refused" not in each]
    for recording in recordings:
        operation = OPERATIONS.get(recording["path"].partition("?")[0])
        if operation is not None:
            assert translate(operation, json.dumps(recording["body"]).encode(), "ours").request["messages"]
