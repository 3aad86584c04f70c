"""Compaction: an item with a summary, which the model writes, in the place of the items that it summarizes.

Its content is encoded, not encrypted: the summary is of the client's own items, and a client may send any text as a
message. So every server reads it, without a secret that they share; a checksum finds damage.
Source: https://developers.openai.com/api/docs/guides/compaction.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import msgspec

from appliance.core.errors import RequestError
from appliance.core.json_edit import remove
from appliance.core.model import COMPACTION_PATH, ModelRequest
from appliance.core.openai_types import Json, now
from appliance.responses import items
from appliance.responses.request_fields import editable

TYPE, TRIGGER = "compaction", "compaction_trigger"
"""The types of items that have a summary, and that request one as the last item of an input."""

# Contents of other servers begin otherwise, such as OpenAI's with `gAAAA`.
_PREFIX = "appliance-1."
_CHECKSUM_BYTES = 8

# The fields of a response that OpenAI's route takes, too.
_ROUTE_FIELDS = ("model", "instructions", "previous_response_id", "prompt_cache_key", "service_tier")

_KEPT_ROLES = frozenset({"user", "developer", "system"})

_INTRODUCTION = "You have written this summary of our conversation until here; continue from it.\n\n"

_PROMPT = (
    "Summarize our conversation for yourself: you will continue it with my messages and your summary alone. Keep my "
    "goals, instructions and preferences, what was decided and why, facts, names, numbers, paths and errors that still "
    "matter, what was done and found, and what is to be done next. Call no tools, and do not answer earlier questions: "
    "write only the summary."
)


class Compaction(msgspec.Struct):
    """What is read of a compaction, which an upstream may have made."""

    output: Annotated[list[Json], msgspec.Meta(min_length=1)]
    usage: Json | None = None


def decode(body: bytes) -> Compaction | None:
    """Return a compaction; None if the body is something else."""
    try:
        return msgspec.json.decode(body, type=Compaction)
    except (ValueError, RecursionError):
        return None


def item(summary: str) -> Json:
    """Return the item with a summary."""
    text = summary.encode()
    content = base64.urlsafe_b64encode(_checksum(text) + text).decode()
    return items.with_id({"type": TYPE, "encrypted_content": _PREFIX + content})


def readable(read: Sequence[Json], first_new: int = 0) -> list[Json]:
    """Return items as a model reads them: the last summary is a message, and replaces what it summarizes.

    Compactions of other servers stay as they are. The items from `first_new` on are those of the request.

    Raises:
        RequestError: a compaction is damaged.
    """
    summaries: Mapping[int, str] = {
        index: summary
        for index, each in enumerate(read)
        if (summary := summary_of(each, _path(index - first_new))) is not None
    }
    if not summaries:
        return list(read)
    last = max(summaries)
    return [*kept(read[:last]), _user_message(_INTRODUCTION + summaries[last]), *read[last + 1 :]]


def summary_of(compaction: Json, path: str) -> str | None:
    """Return the summary in an item at a path; None if it is another item, or the compaction of another server.

    Raises:
        RequestError: it is damaged.
    """
    content = compaction.get("encrypted_content")
    if compaction.get("type") != TYPE or not isinstance(content, str) or not content.startswith(_PREFIX):
        return None
    try:
        data = base64.b64decode(content.removeprefix(_PREFIX), b"-_", validate=True)
        text = data[_CHECKSUM_BYTES:].decode()
    except ValueError:
        data, text = b"", ""
    if not text or data != _checksum(text.encode()) + text.encode():
        message = f"{path} is a compaction that was changed; send it as the server returned it, or leave it out"
        raise RequestError(message, param=path)
    return text


def kept(read: Sequence[Json]) -> list[Json]:
    """Return the items that a compaction leaves: the messages of everyone but the model."""
    return [each for each in read if each.get("type") == "message" and each.get("role") in _KEPT_ROLES]


def route_request(request: ModelRequest, read: Sequence[Json]) -> ModelRequest:
    """Return the request that has an upstream compact these items, out of one for a response."""
    document = editable(request.body)
    fields = {name: msgspec.Raw(value) for name in _ROUTE_FIELDS if (value := document.get(name)) is not None}
    body = msgspec.json.encode({**fields, "input": readable(read)})
    return replace(request, body=body, path=COMPACTION_PATH, is_streamed=False)


def request_of(request: ModelRequest, read: Sequence[Json]) -> ModelRequest:
    """Return the request for a summary of these items, which are the input of a request."""
    document = editable(request.body)
    prompted = msgspec.json.encode([*readable(read), _user_message(_PROMPT)])
    document.change({"input": lambda _: prompted})
    document.change(dict.fromkeys(("stream", "text", "include"), remove))
    # The tools stay: the prompt begins as those before it, so the prefix cache hits.
    has_tools = document.get("tools") not in {None, b"null", b"[]"}
    document.change({"tool_choice": lambda _: b'"none"' if has_tools else None, "store": lambda _: b"false"})
    return replace(request, body=document.write(), path="", is_streamed=False)


def compacted(response_id: str, read: Sequence[Json], response: Json) -> Json:
    """Return the compaction of what a model has read, out of its response to `request_of`.

    Raises:
        RequestError: the model has written no summary.
    """
    output = [*(items.with_id(items.shown(each)) for each in kept(read)), _item_of(response)]
    head = {"id": response_id, "object": "response.compaction", "created_at": now()}
    return {**head, "output": output, "usage": response.get("usage")}


def _item_of(response: Json) -> Json:
    contents = [each.get("content") for each in response["output"] if each.get("type") == "message"]
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    texts = [part.get("text") for part in parts if part.get("type") == "output_text"]
    summary = "".join(text for text in texts if isinstance(text, str)).strip()
    if not summary:
        message = "The model has written no summary; send fewer items, or leave out max_output_tokens"
        raise RequestError(message, code="no_summary", status=422)
    return item(summary)


def _user_message(text: str) -> Json:
    return {"type": "message", "role": "user", "content": text}


def _checksum(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()[:_CHECKSUM_BYTES]


def _path(index: int) -> str:
    return f"input[{index}]" if index >= 0 else "an item of the history"
