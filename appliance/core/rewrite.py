"""What is changed in requests and responses: the model's name, and what a config says; all other bytes stay."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from appliance.core import json_edit, multipart
from appliance.core.json_edit import Change, JsonObject
from appliance.core.json_limits import has_more_members
from appliance.core.model import Operation

STREAM_OPTIONS = "stream_options"

MODEL_MENTION = b'"model"'

# Before the value of a member.
_COLON = re.compile(rb"\s*+:\s*+")

# A letter of a key can be written so; a key of which no letter is has its plain bytes.
_ESCAPED_ASCII = b"\\u00"

_SYSTEM_ROLES = frozenset({"system", "developer"})


class RequestBody(msgspec.Struct, frozen=True):
    """The body of a request, which each upstream gets with its own name of the model."""

    before: bytes
    value: bytes | None
    """The name as it is in the body; None is a form without one, which stays without."""
    after: bytes
    is_form: bool = False

    @classmethod
    def of(cls, body: bytes, content_type: str) -> RequestBody:
        """Return a body, which is JSON unless it has the content type of a form.

        Raises:
            NotAnObjectError: it is not a JSON object.
            FormError: it is not a form.
        """
        if not multipart.is_form(content_type):
            return cls.of_object(body)
        field = multipart.read_form(body, content_type).get("model")
        if field is None:
            return cls(body, None, b"", is_form=True)
        return cls(body[: field.span.start], body[field.span], body[field.span.stop :], is_form=True)

    @classmethod
    def of_object(cls, body: bytes) -> RequestBody:
        """Return a body, which is JSON; raises as `of` does."""
        span = _sole_model_span(body)
        if span is None or not body.startswith(b'"', span.start):
            return cls.of_json(JsonObject(body))
        return cls(body[: span.start], body[span], body[span.stop :])

    @classmethod
    def of_json(cls, document: JsonObject) -> RequestBody:
        """Return the body of a JSON document, which gets a place for the name if it has none."""
        document.change({"model": json_edit.default("")})
        return cls(*document.split("model"))

    @property
    def model(self) -> str | None:
        """The name that the client sent; None if it sent none."""
        if self.value is None:
            return None
        if self.is_form:
            return self.value.decode(errors="replace")
        name = msgspec.json.decode(self.value)
        return name if isinstance(name, str) and name else None

    def with_model(self, name: str) -> bytes:
        """Return the body with this name in it."""
        if self.value is None:
            return self.before
        return self.before + (name.encode() if self.is_form else msgspec.json.encode(name)) + self.after


class RequestSettings(Protocol):
    """Changes of the JSON of every request, as a config has them."""

    @property
    def defaults(self) -> Mapping[str, object]:
        """Fields for requests without them; objects are completed member by member."""

    @property
    def override(self) -> Mapping[str, object]:
        """Fields that always have this value; objects are merged into the client's member by member."""

    @property
    def drop(self) -> Sequence[str]:
        """Fields that are removed from what the client sent."""

    @property
    def system_prompt(self) -> str | None:
        """Text before the client's system prompt; None if there is none."""


class RequestRewriter:
    """Changes of the JSON of requests, prepared for all requests.

    Of several settings, those of a model and of an alias for example, the later ones win where they disagree.
    """

    def __init__(self, *settings: RequestSettings) -> None:
        self._steps: list[Mapping[str, Change]] = [
            *(dict.fromkeys(each.drop, json_edit.remove) for each in settings),
            *({name: json_edit.default(value) for name, value in each.defaults.items()} for each in reversed(settings)),
            *({name: json_edit.merge(value) for name, value in each.override.items()} for each in settings),
        ]
        self._steps = [step for step in self._steps if step]
        prompt = next((each.system_prompt for each in reversed(settings) if each.system_prompt is not None), None)
        self._prompts = {} if prompt is None else _prompt_changes(prompt)

    def changes(self, operation: Operation) -> bool:
        """Whether requests for an operation are changed at all, so that a body must be parsed."""
        return bool(self._steps) or operation in self._prompts

    def rewrite(self, operation: Operation, document: JsonObject) -> None:
        """Change the request.

        Raises:
            NotAnObjectError: an object or a list in it is too large to be changed.
        """
        for changes in (*self._steps, self._prompts.get(operation, {})):
            document.change(changes)


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


def request_usage(document: JsonObject) -> bool:
    """Have the request ask for the usage of its stream, and return whether it does so only now.

    Source: https://platform.openai.com/docs/api-reference/chat/create, `stream_options.include_usage`.
    """
    if document.get("stream") != b"true":
        return False
    try:
        options = msgspec.json.decode(document.get(STREAM_OPTIONS) or b"null", type=_StreamOptions | None)
    except (ValueError, RecursionError):
        # The upstream reports what is wrong with them.
        return False
    if options is not None and options.include_usage:
        return False
    document.change({STREAM_OPTIONS: json_edit.merge({"include_usage": True})})
    return True


def rename_response(body: bytes, name: str) -> bytes:
    """Return a JSON response with another name of the model; unchanged if it has none."""
    span = model_span(body) if MODEL_MENTION in body else None
    return body if span is None else body[: span.start] + msgspec.json.encode(name) + body[span.stop :]


def model_span(body: bytes) -> slice | None:
    """Return where the model's name is: OpenAI's responses, events of `/v1/responses`, or of Anthropic's messages."""
    if (span := _sole_model_span(body)) is not None:
        return span if body.startswith(b'"', span.start) else None
    spans = json_edit.spans(body)
    if (span := spans.get("model")) is None:
        for outer in filter(None, (spans.get("response"), spans.get("message"))):
            inner = json_edit.spans(body[outer]).get("model")
            if inner is not None:
                span = slice(outer.start + inner.start, outer.start + inner.stop)
                break
    return span if span is not None and body.startswith(b'"', span.start) else None


class _Named(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw()


def _sole_model_span(body: bytes) -> slice | None:
    """Return where the value of an object's member `model` is, found without a step for each member.

    None if that needs all members: there is no such member, or its key occurs elsewhere too.
    """
    if body.count(MODEL_MENTION) != 1 or _ESCAPED_ASCII in body:
        return None
    try:
        value = bytes(msgspec.json.decode(body, type=_Named).model)
    except (ValueError, RecursionError):
        return None
    colon = _COLON.match(body, body.index(MODEL_MENTION) + len(MODEL_MENTION))
    return slice(colon.end(), colon.end() + len(value)) if value and colon is not None else None


def _prompt_changes(text: str) -> Mapping[Operation, Mapping[str, Change]]:
    """Return where each protocol has the system prompt; operations that count tokens have it too."""
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
    """Return the messages with a text in the client's system prompt, because many templates accept only one."""
    if old is None or not old.startswith(b"["):
        return old
    if has_more_members(old, json_edit.MAX_MEMBERS):
        raise json_edit.NotAnObjectError(f"it has more than {json_edit.MAX_MEMBERS} messages")
    messages = msgspec.json.decode(old, type=list[msgspec.Raw])
    first = bytes(messages[0]) if messages else b""
    if not _is_system(first):
        message = msgspec.json.encode({"role": "system", "content": text})
        return b"[" + message + (b", " if messages else b"") + old[1:]
    start = old.index(first)
    changed = json_edit.edit(first, {"content": lambda content: _before_text(text, content)})
    return old[:start] + changed + old[start + len(first) :]


def _is_system(message: bytes) -> bool:
    span = json_edit.spans(message).get("role")
    try:
        role = None if span is None else msgspec.json.decode(message[span])
    except ValueError:
        # Not UTF-8; the upstream reports it.
        return False
    return isinstance(role, str) and role in _SYSTEM_ROLES


def _before_text(text: str, old: bytes | None) -> bytes:
    """Return a text with another before it, or a list of parts with another first part."""
    if old is None or old == b"null":
        return msgspec.json.encode(text)
    if old.startswith(b"["):
        part = msgspec.json.encode({"type": "text", "text": text})
        return b"[" + part + (b"" if old[1:].lstrip().startswith(b"]") else b", ") + old[1:]
    if old.startswith(b'"'):
        return msgspec.json.encode(text + "\n\n")[:-1] + old[1:]
    return old
