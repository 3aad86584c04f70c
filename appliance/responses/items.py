"""Items of the Responses API: what a model reads and writes, and lists of them.

Source: https://platform.openai.com/docs/api-reference/responses/input-items
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from appliance.core.errors import RequestError
from appliance.core.openai_types import Json
from appliance.core.stored_objects import new_object_id

Order = Literal["asc", "desc"]

# The prefixes of OpenAI's ids.
_PREFIXES = {
    "message": "msg_",
    "reasoning": "rs_",
    "function_call": "fc_",
    "function_call_output": "fco_",
    "custom_tool_call": "ctc_",
    "custom_tool_call_output": "ctco_",
    "compaction": "cmp_",
}

# Types of items that models or services read, by the texts that each must have.
_REQUIRED: Mapping[str, Sequence[str]] = {
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id",),
    "custom_tool_call": ("call_id", "name", "input"),
    "custom_tool_call_output": ("call_id",),
    "compaction": ("encrypted_content",),
}
_KINDS = _REQUIRED.keys() | {
    *("message", "reasoning", "web_search_call", "file_search_call", "image_generation_call"),
    *("computer_call", "computer_call_output", "code_interpreter_call", "tool_search_call", "tool_search_output"),
    *("local_shell_call", "local_shell_call_output", "shell_call", "shell_call_output"),
    *("apply_patch_call", "apply_patch_call_output"),
    *("mcp_call", "mcp_list_tools", "mcp_approval_request", "mcp_approval_response"),
}

# Calls whose outputs clients send.
_CALLS = frozenset({"function_call", "custom_tool_call"})

_ROLES = ("user", "assistant", "system", "developer")
_TEXT_PARTS = frozenset({"input_text", "output_text", "text"})

_ITEM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

_MAX_PAGE, _MAX_QUOTED = 100, 80


def input_items(raw: bytes) -> list[Json]:
    """Return the items of the field `input`, each with a type and an id; a text is a message of the user."""
    try:
        value = msgspec.json.decode(raw, type=str | list[Json] | None)
    except (msgspec.ValidationError, RecursionError) as error:
        raise RequestError(f"input must be a text or a list of items: {error}", param="input") from error
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    return [with_id(item) for item in value or ()]


def with_id(item: Json) -> Json:
    """Return an item with its type and an id."""
    kind = item.get("type") or ("message" if "role" in item else None)
    if not isinstance(kind, str):
        raise RequestError("An item has no type; each must have one, such as message", param="input")
    item_id = item.get("id")
    if not isinstance(item_id, str | None):
        raise RequestError("The id of an item must be a text", param="input")
    return {**item, "type": kind, "id": item_id or new_object_id(_PREFIXES.get(kind, "item_"))}


def checked_items(items: Sequence[Json]) -> list[Json]:
    """Return the items that a client adds to a conversation, each with its type and an id.

    Raises:
        RequestError: one would make every later request of the conversation fail.
    """
    checked: list[Json] = []
    taken: set[str] = set()
    for index, item in enumerate(items):
        path = f"items[{index}]"
        _require_id(item.get("id"), taken, f"{path}.id")
        kind = item.get("type") or ("message" if "role" in item else None)
        if not isinstance(kind, str) or kind not in _KINDS:
            raise _wrong(f"{path}.type", kind, "the type of an item, such as message")
        if kind == "message":
            _require_message(item, path)
        for name in _REQUIRED.get(kind, ()):
            if not isinstance(item.get(name), str):
                raise _wrong(f"{path}.{name}", item.get(name), "a text")
        checked.append(with_id(item))
    return checked


def _require_id(item_id: object, taken: set[str], path: str) -> None:
    if item_id is None:
        return
    if not isinstance(item_id, str) or not _ITEM_ID.fullmatch(item_id):
        raise _wrong(path, item_id, "1 to 64 letters, digits, _ and -; or leave it out")
    if item_id in taken:
        raise RequestError(f"{path} is {item_id!r}, which an earlier item has; leave it out", param=path)
    taken.add(item_id)


def _require_message(item: Json, path: str) -> None:
    if item.get("role") not in _ROLES:
        raise _wrong(f"{path}.role", item.get("role"), f"one of {', '.join(_ROLES)}")
    content = item.get("content")
    if not isinstance(content, str | list):
        raise _wrong(f"{path}.content", content, "a text or a list of parts")
    for index, part in enumerate(content if isinstance(content, list) else ()):
        part_path = f"{path}.content[{index}]"
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise _wrong(part_path, part, "an object with a type, such as input_text")
        if part["type"] in _TEXT_PARTS and not isinstance(part.get("text"), str):
            raise _wrong(f"{part_path}.text", part.get("text"), "a text")


def _wrong(path: str, value: object, expected: str) -> RequestError:
    return RequestError(f"{path} is {repr(value)[:_MAX_QUOTED]}; must be {expected}", param=path)


def require_calls(items: Sequence[Json], new: Sequence[Json]) -> None:
    """Raise a RequestError if one of the new items is the output of a call that no item makes."""
    calls = {each.get("call_id") for each in items if each["type"] in _CALLS}
    for each in new:
        kind, call = each["type"].removesuffix("_output"), each.get("call_id")
        if kind in _CALLS and call not in calls:
            text = f"input has an output for the call {str(call)[:_MAX_QUOTED]!r}, which no item makes"
            raise RequestError(f"{text}; send its call, too", param="input")


def as_history(items: Sequence[Json]) -> list[Json]:
    """Return earlier items for the next request, without those that only the server knew which wrote them."""
    # The reasoning of a service that neither shows nor encrypts it; other servers refuse an item without content.
    return [
        each for each in items if each.get("type") != "reasoning" or each.get("content") or "encrypted_content" in each
    ]


def shown(item: Json) -> Json:
    """Return an item as lists show it: a message has parts and a status."""
    if item.get("type") != "message":
        return item
    content = item.get("content")
    if isinstance(content, str):
        is_output = item.get("role") == "assistant"
        part = (
            {"type": "output_text", "text": content, "annotations": []}
            if is_output
            else {"type": "input_text", "text": content}
        )
        content = [part]
    return {**item, "content": content, "status": item.get("status") or "completed"}


def page(items: Sequence[Json], limit: int, order: str, after: str | None) -> Json:
    """Return a part of a list in OpenAI's format; `items` are the oldest first.

    Raises:
        RequestError: a parameter is wrong.
    """
    if not 1 <= limit <= _MAX_PAGE:
        raise RequestError(f"limit is {limit}; must be from 1 to {_MAX_PAGE}", param="limit")
    if order not in {"asc", "desc"}:
        raise RequestError(f"order is {order[:40]!r}; must be asc or desc", param="order")
    ordered = list(items) if order == "asc" else list(reversed(items))
    if after is not None:
        index = next((index for index, each in enumerate(ordered) if each.get("id") == after), None)
        if index is None:
            raise RequestError(f"after is {after[:80]!r}, which is no item of this list", param="after")
        ordered = ordered[index + 1 :]
    data = [shown(each) for each in ordered[:limit]]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(ordered) > limit,
    }
