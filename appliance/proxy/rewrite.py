"""What is changed in a request on its way: nothing, unless the section says so."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from appliance.config.upstreams import RequestRewriteConfig
from appliance.core import json_edit
from appliance.core.json_edit import Change
from appliance.core.json_limits import has_more_members
from appliance.core.model import Operation

_SYSTEM_ROLES = frozenset({"system", "developer"})


class Rewrite:
    """A section's changes, made ready once for all requests."""

    def __init__(self, config: RequestRewriteConfig) -> None:
        self._steps: list[Mapping[str, Change]] = [
            dict.fromkeys(config.drop, json_edit.drop),
            {name: json_edit.add(value) for name, value in config.defaults.items()},
            {name: json_edit.lay(value) for name, value in config.override.items()},
        ]
        self._prompts = {} if config.system_prompt is None else _prompts(config.system_prompt)

    def __call__(self, operation: Operation, body: bytes) -> bytes:
        """The body with the changes made; the same one where there are none to make.

        Raises:
            NotAnObjectError: the body is no JSON object.
        """
        for changes in (*self._steps, self._prompts.get(operation)):
            if changes:
                body = json_edit.changed(body, changes)
        return body


def _prompts(text: str) -> Mapping[Operation, Mapping[str, Change]]:
    """Where each protocol keeps the system prompt; what counts tokens counts it too."""
    messages = {"messages": lambda old: _before_messages(text, old)}
    system = {"system": lambda old: _before_text(text, old)}
    return {
        Operation.CHAT_COMPLETION: messages,
        Operation.TOKENIZE: messages,
        Operation.MESSAGE: system,
        Operation.COUNT_TOKENS: system,
        Operation.RESPONSE: {"instructions": lambda old: _before_text(text, old)},
    }


def _before_messages(text: str, old: bytes | None) -> bytes | None:
    """Into the first message where that is the client's system prompt, because many templates take only one."""
    if old is None or not old.startswith(b"["):
        return old
    if has_more_members(old, json_edit.MOST_MEMBERS):
        raise json_edit.NotAnObjectError(f"it has more than {json_edit.MOST_MEMBERS} messages")
    messages = msgspec.json.decode(old, type=list[msgspec.Raw])
    first = bytes(messages[0]) if messages else b""
    if not _is_system(first):
        message = msgspec.json.encode({"role": "system", "content": text})
        return b"[" + message + (b", " if messages else b"") + old[1:]
    start = old.index(first)
    made = json_edit.changed(first, {"content": lambda content: _before_text(text, content)})
    return old[:start] + made + old[start + len(first) :]


def _is_system(message: bytes) -> bool:
    span = json_edit.span_of(message, "role")
    try:
        role = None if span is None else msgspec.json.decode(message[span])
    except ValueError:
        # No UTF-8; the upstream is asked, and says so.
        return False
    return isinstance(role, str) and role in _SYSTEM_ROLES


def _before_text(text: str, old: bytes | None) -> bytes:
    """Before a text, or as the first of several parts."""
    if old is None or old == b"null":
        return msgspec.json.encode(text)
    if old.startswith(b"["):
        part = msgspec.json.encode({"type": "text", "text": text})
        return b"[" + part + (b"" if old[1:].lstrip().startswith(b"]") else b", ") + old[1:]
    if old.startswith(b'"'):
        return msgspec.json.encode(text + "\n\n")[:-1] + old[1:]
    return old
