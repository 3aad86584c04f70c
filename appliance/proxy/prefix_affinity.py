"""The head of a prompt: what an upstream's cache of prefixes knows a conversation by."""

from __future__ import annotations

import msgspec

from appliance.core.json_edit import MOST_MEMBERS
from appliance.core.json_limits import has_more_members

# Enough to tell conversations apart by their system prompt and first question.
_MOST_BYTES = 4096

_NONE = msgspec.Raw(b"")


class _Prompt(msgspec.Struct):
    """The members that hold the prompt, in the order in which models read them."""

    system: msgspec.Raw = _NONE
    instructions: msgspec.Raw = _NONE
    messages: msgspec.Raw = _NONE
    prompt: msgspec.Raw = _NONE
    input: msgspec.Raw = _NONE
    query: msgspec.Raw = _NONE


class _Message(msgspec.Struct):
    role: str = ""


def head_of(body: bytes) -> bytes:
    """The first of a prompt, the same at every turn of a conversation; empty where there is none."""
    try:
        prompt = msgspec.json.decode(body, type=_Prompt)
        parts = [_until_user(bytes(getattr(prompt, name))) for name in _Prompt.__struct_fields__]
    except (ValueError, RecursionError):
        return b""
    return b"".join(parts)[:_MOST_BYTES]


def _until_user(value: bytes) -> bytes:
    """Of a list of messages those up to the first of the user's; later turns only add to the rest."""
    if not value.startswith(b"[") or has_more_members(value, MOST_MEMBERS):
        return value
    head = []
    for message in msgspec.json.decode(value, type=list[msgspec.Raw]):
        head.append(bytes(message))
        if head[-1].startswith(b"{") and msgspec.json.decode(message, type=_Message).role == "user":
            break
    return b"".join(head)
