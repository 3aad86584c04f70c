"""The response object: the fields that this server sets, and OpenAI's defaults for those that a model leaves out.

Source: https://platform.openai.com/docs/api-reference/responses/object, and https://www.openresponses.org/specification
for the fields that every response has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from appliance.core.openai_types import Json, now

FINISHED = frozenset({"completed", "incomplete", "failed", "cancelled"})
"""States that do not change."""

# Values of fields that a model leaves out or sets to null, where null is none of their values.
_DEFAULTS: Mapping[str, Any] = {  # Any: JSON values
    "background": False,
    "frequency_penalty": 0,
    "metadata": {},
    "output": [],
    "parallel_tool_calls": True,
    "presence_penalty": 0,
    "service_tier": "default",
    "store": False,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "truncation": "disabled",
}

# Fields that may be null, but not missing.
_NULLS = (
    *("completed_at", "error", "incomplete_details", "instructions", "max_output_tokens", "max_tool_calls"),
    *("previous_response_id", "prompt_cache_key", "reasoning", "safety_identifier", "usage", "user"),
)

# Fields that a response repeats from its request.
_ECHOED = (*_DEFAULTS, *_NULLS, "temperature", "top_p")


def completed(response: Json) -> Json:
    """Return a response with every field that clients expect."""
    full = {**response, **{name: response.get(name) for name in _NULLS}}
    full |= {name: value for name, value in _DEFAULTS.items() if full.get(name) is None}
    if full["completed_at"] is None and full.get("status") == "completed":
        full["completed_at"] = now()
    # What else an upstream may put there is nothing that a later request can repeat.
    output = full["output"] if isinstance(full["output"], list) else []
    full["output"] = [item for item in output if isinstance(item, dict)]
    for item in full["output"]:
        _complete_item(item)
    return full


def queued(response_id: str, model: str, request: Mapping[str, Any]) -> Json:  # Any: JSON values
    """Return the response to a request in the background before it has begun."""
    echoed = {name: request[name] for name in _ECHOED if name in request and name != "error"}
    head = {"id": response_id, "object": "response", "created_at": now(), "status": "queued", "model": model}
    return completed({**head, **echoed, "output": []})


def failed(response: Json, code: str, message: str) -> Json:
    """Return a response that has failed."""
    return {**response, "status": "failed", "error": {"code": code, "message": message}}


def decode(body: bytes) -> Json | None:
    """Return a model's response; None if the body is something else."""
    try:
        response = msgspec.json.decode(body, type=Json)
    except (ValueError, RecursionError):
        return None
    return response if response.get("object") == "response" else None


def _complete_item(item: Json) -> None:
    """Give the texts of a message their lists."""
    parts = item.get("content") if item.get("type") == "message" else None
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, dict) and part.get("type") == "output_text":
            part["annotations"] = part.get("annotations") or []
            part["logprobs"] = part.get("logprobs") or []
