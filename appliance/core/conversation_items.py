"""Histories and tools of agents, in the forms that a model reads.

Agents repeat in each request what other servers wrote before: calls of hosted tools, encrypted reasoning, members that
are null. Each item of a history is kept, translated, left out because it has nothing that a model reads, or refused.

Sources: https://platform.openai.com/docs/api-reference/responses/create and https://docs.anthropic.com/en/api/messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from appliance.core.errors import RequestError

Json = dict[str, Any]  # Any: JSON values, here and below

# Calls of tools that the client runs, with the name of the tool and the member that has its arguments.
_CLIENT_CALLS = {
    "local_shell_call": ("local_shell", "action"),
    "shell_call": ("shell", "action"),
    "apply_patch_call": ("apply_patch", "operation"),
}

_OUTPUTS = frozenset({"function_call_output", "custom_tool_call_output"} | {f"{name}_output" for name in _CLIENT_CALLS})

# Tools that the model's maker runs, by the beginning of their type.
_HOSTED_TOOLS = re.compile(
    r"web_search|web_fetch|file_search|code_interpreter|code_execution|image_generation|mcp|tool_search|programmatic|"
    r"advisor"
)

# Tools that the client runs, and that only the models of their maker know without a description.
_UNDESCRIBED_TOOLS = re.compile(r"local_shell|shell|apply_patch|computer|bash|text_editor|memory")

_DESCRIBED_TOOLS = frozenset({"function", "custom", "namespace"})

_BLOCKS = frozenset(
    {"text", "image", "tool_use", "tool_result", "tool_reference", "thinking", "redacted_thinking"}
    | {"tool_addition", "tool_removal"}
)
_RESULT_BLOCKS = frozenset({"text", "image", "tool_reference"})

# Anthropic encrypts what its servers found, so that its own models alone can read it.
_SEARCH_BLOCKS = frozenset({"server_tool_use", "web_search_tool_result"})

# These have no text; engines skip them, so that the other items keep their places in error messages.
_EMPTY_TURN: Json = {"type": "message", "role": "assistant", "content": []}
_EMPTY_BLOCK: Json = {"type": "redacted_thinking", "data": ""}

_MAX_QUOTED = 100


def translate_response_request(body: Json) -> None:
    """Change a request of the Responses API in place; raises RequestError for an item that no model here reads.

    Items that are left out become turns of the assistant without content. The types of values are not checked.
    """
    if isinstance(items := body.get("input"), list):
        body["input"] = [
            _translate_item(item, f"input[{index}]") if isinstance(item, dict) else item
            for index, item in enumerate(items)
        ]
    _translate_tools(body)
    if isinstance(choice := body.get("tool_choice"), dict) and choice.get("type") == "allowed_tools":
        _keep_allowed_tools(body, choice)


def translate_message_request(body: Json, *, has_thinking_budget: bool = True) -> None:
    """Change a request of the Messages API in place; raises RequestError for a block that no model here reads.

    `has_thinking_budget` is whether the engine can end the reasoning of the model; else a budget is left out.
    """
    for index, message in enumerate(_list(body.get("messages"))):
        if isinstance(message, dict) and isinstance(blocks := message.get("content"), list):
            path = f"messages[{index}].content"
            message["content"] = [_translate_block(block, f"{path}[{place}]") for place, block in enumerate(blocks)]
    for name in ("mcp_servers", "container"):
        if body.get(name):
            raise RequestError(f"{name} is not available: no tools are run here; leave it out", param=name)
    config = body.get("output_config") or {}
    if (output_format := body.pop("output_format", None)) is not None and isinstance(config, dict):
        # The name of the field in the API's beta.
        body["output_config"] = {**config, "format": output_format}
    thinking = body.get("thinking")
    if not has_thinking_budget and isinstance(thinking, dict) and thinking.get("type") == "enabled":
        body["thinking"] = {"type": "adaptive"}
    _translate_tools(body)


def content_parts(body: Any) -> Iterator[tuple[str, object]]:
    """Yield the path and the type of each part of a request's messages or items, those in the results of tools too."""
    for field in ("messages", "input"):
        for index, item in enumerate(_list(body.get(field)) if isinstance(body, dict) else ()):
            yield from _parts(item, f"{field}[{index}]")


def _parts(item: Any, path: str) -> Iterator[tuple[str, object]]:
    for name in ("content", "output"):
        for index, part in enumerate(_list(item.get(name)) if isinstance(item, dict) else ()):
            if isinstance(part, dict):
                yield f"{path}.{name}[{index}]", part.get("type")
                yield from _parts(part, f"{path}.{name}[{index}]")


def _translate_item(item: Json, path: str) -> Json:
    item = {name: value for name, value in item.items() if value is not None}
    if "role" in item:
        item.setdefault("type", "message")
    kind = _kind(item)
    if kind == "message":
        return _assistant_turn(item, path) if item.get("role") == "assistant" else item
    if kind == "reasoning":
        return _reasoning(item)
    if kind in _CLIENT_CALLS:
        return _function_call(item, *_CLIENT_CALLS[kind])
    if kind in _OUTPUTS:
        return _function_output(item)
    if kind == "web_search_call":
        # It names the question. What was found is in the text that follows.
        return _EMPTY_TURN
    if kind == "compaction":
        if not isinstance(item.get("encrypted_content"), str) or not item["encrypted_content"]:
            text = (
                f"{path}.encrypted_content must be the text that a server returned; send it, or leave it out of input"
            )
            raise RequestError(text, param=path)
        text = f"{path}: no model here reads this compaction, because another server made it; leave it out of input"
        raise RequestError(text, param=path)
    if kind not in {None, "function_call", "custom_tool_call"}:
        raise _unreadable(path, kind, "input")
    return item


def _assistant_turn(item: Json, path: str) -> Json:
    """Return a turn of the assistant whose texts are one, because engines read the first."""
    if not isinstance(parts := item.get("content"), list):
        return item
    texts = []
    for index, part in enumerate(parts):
        kind = _kind(part)
        if kind not in {"output_text", "input_text", "text", "refusal"}:
            raise _unreadable(f"{path}.content[{index}]", kind, "the turn of the assistant")
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise RequestError(f"{path}.content[{index}] has no text", param=f"{path}.content[{index}]")
        texts.append(text)
    content = [{"type": "output_text", "text": "".join(texts), "annotations": []}] if texts else []
    return {**item, "content": content}


def _reasoning(item: Json) -> Json:
    """Return the reasoning that can be read; what is encrypted is for the server that wrote it."""
    item.pop("encrypted_content", None)
    texts = _texts(item.get("content")) or _texts(item.get("summary"))
    if not texts:
        return _EMPTY_TURN
    return {**item, "summary": [], "content": [{"type": "reasoning_text", "text": "\n".join(texts)}]}


def _function_call(item: Json, name: str, member: str) -> Json:
    details = item.get(member)
    given = {key: value for key, value in details.items() if value is not None} if isinstance(details, dict) else {}
    call_id = item.get("call_id", item.get("id"))
    return {"type": "function_call", "name": name, "arguments": msgspec.json.encode(given).decode(), "call_id": call_id}


def _function_output(item: Json) -> Json:
    output = item.get("output")
    if isinstance(output, list) and all(isinstance(part, dict) for part in output):
        kinds = set(map(_kind, output))
        if kinds <= {"input_text", "output_text", "text"}:
            output = "\n".join(_texts(output))
        elif not kinds <= {"input_text", "input_image", "input_file"}:
            output = msgspec.json.encode(output).decode()
    members = {"type": "function_call_output", "output": output, "call_id": item.get("call_id", item.get("id"))}
    return {name: value for name, value in members.items() if value is not None}


def _translate_block(block: Any, path: str) -> Any:
    kind = _kind(block)
    if kind in _SEARCH_BLOCKS:
        return _EMPTY_BLOCK
    if kind == "document":
        return _document(block, path)
    if kind is not None and kind not in _BLOCKS:
        raise _unreadable(path, kind, "the message")
    if kind == "tool_result" and isinstance(parts := block.get("content"), list):
        content = [_translate_result(part, f"{path}.content[{index}]") for index, part in enumerate(parts)]
        return {**block, "content": content}
    return block


def _translate_result(part: Any, path: str) -> Any:
    kind = _kind(part)
    if kind == "document":
        return _document(part, path)
    if kind is not None and kind not in _RESULT_BLOCKS:
        raise _unreadable(path, kind, "the tool result")
    return part


def _document(block: Json, path: str) -> Json:
    source = block.get("source")
    source = source if isinstance(source, dict) else {}
    kind = source.get("type")
    texts: list[str] = []
    if kind == "text" and isinstance(text := source.get("data"), str):
        texts = [text]
    elif kind == "content":
        texts = _texts(source.get("content"))
    if not texts:
        raise RequestError(
            f"{path}: a document with a source of type {_quoted(kind)} cannot be read; send its text, or leave it out",
            param=path,
        )
    title = block.get("title")
    return {"type": "text", "text": "\n".join([title, *texts] if isinstance(title, str) else texts)}


def _translate_tools(body: Json) -> None:
    """Leave out hosted tools beside those that clients describe; raises RequestError if the request needs one."""
    described, hosted = [], {}
    for index, tool in enumerate(_list(body.get("tools"))):
        kind = _kind(tool)
        if kind is None or kind in _DESCRIBED_TOOLS:
            described.append(tool)
        elif _HOSTED_TOOLS.match(kind):
            hosted[f"tools[{index}]"] = tool
        else:
            raise _undescribed_tool(f"tools[{index}]", kind)
    choice = body.get("tool_choice")
    for path, tool in hosted.items():
        if not described or (isinstance(choice, dict) and _names(choice, tool)):
            kind = _quoted(tool["type"])
            message = f"{path}: no tools of type {kind} are run here; leave it out, or describe a tool of yours"
            raise RequestError(message, param=path)
    if isinstance(choice, dict) and _HOSTED_TOOLS.match(kind := str(choice.get("type"))):
        raise RequestError(f"tool_choice: no tools of type {_quoted(kind)} are run here", param="tool_choice")
    if hosted:
        body["tools"] = described


def _keep_allowed_tools(body: Json, choice: Json) -> None:
    """Offer the allowed tools alone; engines know no list of them."""
    names = [tool.get("name") for tool in _list(choice.get("tools")) if isinstance(tool, dict)]
    allowed = {name for name in names if isinstance(name, str)}
    tools = [tool for tool in _list(body.get("tools")) if isinstance(tool, dict)]
    body["tools"] = [tool for tool in tools if isinstance(name := tool.get("name"), str) and name in allowed]
    if not body["tools"]:
        raise RequestError("tool_choice allows no tool of the request", param="tool_choice")
    body["tool_choice"] = choice.get("mode", "auto")


def _names(choice: Json, tool: Json) -> bool:
    return choice.get("type") == tool["type"] or ("name" in choice and choice["name"] == tool.get("name"))


def _undescribed_tool(path: str, kind: str) -> RequestError:
    known = "is known to its maker's models alone" if _UNDESCRIBED_TOOLS.match(kind) else "is not known"
    return RequestError(
        f"{path}: the type {_quoted(kind)} {known}; describe the tool as a function with parameters, or leave it out",
        param=path,
    )


def _unreadable(path: str, kind: object, place: str) -> RequestError:
    return RequestError(f"{path}: no model here reads the type {_quoted(kind)}; leave it out of {place}", param=path)


def _kind(value: Any) -> str | None:
    """Return the type that an object says it has; None if it says none, or is no object."""
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else None


def _quoted(kind: object) -> str:
    return repr(kind)[:_MAX_QUOTED]


def _texts(parts: Any) -> list[str]:
    texts = (part.get("text") for part in _list(parts) if isinstance(part, dict))
    return [text for text in texts if isinstance(text, str) and text]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
