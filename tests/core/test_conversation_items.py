"""Items of agents' histories: kept, translated, left out, or refused by their path."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest

from appliance.core.conversation_items import content_parts, translate_message_request, translate_response_request
from appliance.core.errors import RequestError

SEARCH = {"type": "web_search_20250305", "name": "web_search"}
LEFT_OUT = {"type": "message", "role": "assistant", "content": []}
FUNCTION = {"type": "function", "name": "f", "parameters": {}}


def _item(item: dict[str, Any]) -> Any:
    body = {"input": [item]}
    translate_response_request(body)
    return body["input"][0]


def _block(block: dict[str, Any]) -> Any:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": [block]}]}
    translate_message_request(body)
    return body["messages"][0]["content"][0]


def _text(text: str, kind: str = "output_text") -> dict[str, Any]:
    return {"type": kind, "text": text}


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"role": "user", "content": "Hi"}, {"type": "message", "role": "user", "content": "Hi"}),
        (
            {"role": "assistant", "status": None, "content": [_text("a"), {"type": "refusal", "refusal": "b"}]},
            {"type": "message", "role": "assistant", "content": [{**_text("ab"), "annotations": []}]},
        ),
        (
            {"type": "reasoning", "summary": [_text("a", "summary_text")], "content": None, "encrypted_content": "x"},
            {"type": "reasoning", "summary": [], "content": [_text("a", "reasoning_text")]},
        ),
        ({"type": "reasoning", "summary": [], "encrypted_content": "x"}, LEFT_OUT),
        ({"type": "web_search_call", "action": {"type": "search", "query": "a"}}, LEFT_OUT),
        (
            {"type": "local_shell_call", "call_id": "c", "action": {"command": ["ls"], "env": None}},
            {"type": "function_call", "name": "local_shell", "arguments": '{"command":["ls"]}', "call_id": "c"},
        ),
        (
            {"type": "apply_patch_call", "id": "i", "operation": {"type": "delete_file", "path": "a"}},
            {
                "type": "function_call",
                "name": "apply_patch",
                "arguments": '{"type":"delete_file","path":"a"}',
                "call_id": "i",
            },
        ),
        (
            {"type": "local_shell_call_output", "id": "c", "output": "a"},
            {"type": "function_call_output", "call_id": "c", "output": "a"},
        ),
        (
            {
                "type": "custom_tool_call_output",
                "call_id": "c",
                "output": [_text("a", "input_text"), _text("b", "text")],
            },
            {"type": "function_call_output", "call_id": "c", "output": "a\nb"},
        ),
        (
            {"type": "shell_call_output", "call_id": "c", "output": [{"stdout": "a", "stderr": ""}]},
            {"type": "function_call_output", "call_id": "c", "output": '[{"stdout":"a","stderr":""}]'},
        ),
    ],
)
def test_an_item_becomes_one_that_engines_read(item: dict[str, Any], expected: dict[str, Any]) -> None:
    """Nulls are dropped, texts are joined, calls of a client's tool are calls of a function."""
    assert _item(item) == expected


@pytest.mark.parametrize("wrong", [None, 5, "a", [], {}, [[]], [{}], {"type": []}, [{"type": {}}]])
def test_no_value_ends_the_translation(wrong: object) -> None:
    """Whatever stands in a place, it is left as it is, or refused."""
    names = ("type", "role", "content", "output", "action", "source", "summary", "call_id", "title", "name", "tools")
    kinds = ("message", "reasoning", "local_shell_call", "shell_call_output", "document", "tool_result", "web_search")
    objects = [{"type": kind, "role": "assistant", name: wrong} for kind in kinds for name in names]
    bodies: list[dict[str, Any]] = [{"messages": [{"content": [each]}, each]} for each in objects]
    bodies += [{"input": [each], "tools": [FUNCTION, each], "tool_choice": each} for each in objects]
    bodies += [{name: wrong} for name in ("messages", "tools", "tool_choice", "thinking", "output_config", "container")]
    bodies.append({"output_format": {}, "output_config": wrong})
    for body in bodies:
        for translate in (translate_response_request, translate_message_request):
            copy = msgspec.json.decode(msgspec.json.encode(body))
            with contextlib.suppress(RequestError):
                translate(copy)
            assert all(path for path, _ in content_parts(copy))


def test_what_is_no_item_is_left_to_the_types() -> None:
    """Values of a wrong type are refused where all types are checked."""
    wrong: object
    for wrong in ("Hi", 5, None, [5, "a", None], {}):
        body: dict[str, object] = {"input": wrong, "tools": wrong, "messages": wrong}
        translate_response_request(body)
        translate_message_request(body)
        assert body == {"input": wrong, "tools": wrong, "messages": wrong}
    items: list[dict[str, Any]] = [
        {"type": 5},
        {"type": []},
        {"type": {}, "role": "user"},
        {"role": "assistant", "content": 5},
        {"type": "function_call_output", "output": 5},
    ]
    for item in items:
        assert _item(item) | item == _item(item)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"type": "text", "data": "a"}, "t\na"),
        ({"type": "content", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "t\na\nb"),
    ],
)
def test_a_document_of_text_is_text(source: dict[str, Any], text: str) -> None:
    """In a message and in the result of a tool."""
    document = {"type": "document", "title": "t", "source": source}

    assert _block(document) == {"type": "text", "text": text}
    assert _block({"type": "tool_result", "content": [document]})["content"] == [{"type": "text", "text": text}]


@pytest.mark.parametrize(
    ("block", "path"),
    [
        ({"type": "document", "source": {"type": "file", "file_id": "a"}}, "messages[0].content[0]"),
        ({"type": "mcp_tool_use"}, "messages[0].content[0]"),
        ({"type": "tool_result", "content": [{"type": "smell"}]}, "messages[0].content[0].content[0]"),
    ],
)
def test_a_block_that_nothing_reads_is_refused_by_its_path(block: dict[str, Any], path: str) -> None:
    """The client learns where it is."""
    with pytest.raises(RequestError, match="leave it out") as caught:
        _block(block)

    assert caught.value.param == path


def test_a_hosted_tool_is_left_out_beside_tools_that_clients_describe() -> None:
    """Alone, or if it must be called, it is refused, and so is a tool that only its maker's models know."""
    body = {"tools": [{"type": "web_search"}, FUNCTION, {"type": "mcp", "server_label": "x"}]}
    translate_response_request(body)

    assert body == {"tools": [FUNCTION]}
    for tools, choice, param in (
        ([{"type": "web_search"}], "auto", "tools[0]"),
        (
            [FUNCTION, {"type": "web_search_20250305", "name": "web_search"}],
            {"type": "tool", "name": "web_search"},
            "tools[1]",
        ),
        ([FUNCTION, {"type": "text_editor_20250728"}], "auto", "tools[1]"),
        ([{"type": "smell"}], "auto", "tools[0]"),
        ([FUNCTION], {"type": "file_search"}, "tool_choice"),
    ):
        with pytest.raises(RequestError) as caught:
            translate_response_request({"tools": tools, "tool_choice": choice})
        assert caught.value.param == param


def test_allowed_tools_are_the_tools_of_the_request() -> None:
    """Engines know no list of allowed tools."""
    other = {**FUNCTION, "name": "g"}
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]}
    body = {"tools": [FUNCTION, other], "tool_choice": choice}
    translate_response_request(body)

    assert body == {"tools": [other], "tool_choice": "required"}
    with pytest.raises(RequestError) as caught:
        translate_response_request({"tools": [FUNCTION], "tool_choice": choice})
    assert caught.value.param == "tool_choice"


def test_parts_are_found_at_any_depth() -> None:
    """In messages, in items, and in the results of tools."""
    result = {"type": "tool_result", "content": [{"type": "image"}]}
    body = {
        "messages": [{"content": "Hi"}, {"content": [result]}],
        "input": [{"output": [{"type": "input_image"}]}],
    }

    assert list(content_parts(body)) == [
        ("messages[1].content[0]", "tool_result"),
        ("messages[1].content[0].content[0]", "image"),
        ("input[0].output[0]", "input_image"),
    ]
