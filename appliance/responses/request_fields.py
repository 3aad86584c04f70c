"""What a request for a response asks of the store, and the request that the model gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from appliance.core.errors import RequestError
from appliance.core.json_edit import JsonObject, NotAnObjectError, remove
from appliance.core.model import ModelRequest
from appliance.core.openai_types import Json, require_small_metadata

# The model neither stores nor knows anything of the store.
_OURS = ("background", "previous_response_id", "conversation")


class _Conversation(msgspec.Struct):
    id: str


class RequestFields(msgspec.Struct):
    """The fields that are read here; null is the default of each."""

    input: msgspec.Raw = msgspec.Raw(b"null")
    store: bool | None = None
    stream: Any = None  # Any: the model validates it
    background: bool | None = None
    generate: Any = None  # Any: only `false` over a WebSocket matters
    instructions: Any = None  # Any: the same
    metadata: dict[str, str] | None = None
    previous_response_id: str | None = None
    conversation: str | _Conversation | None = None

    @property
    def conversation_id(self) -> str | None:
        """The id of the conversation; None if there is none."""
        return self.conversation.id if isinstance(self.conversation, _Conversation) else self.conversation


def decode(body: bytes) -> RequestFields:
    """Return the fields of a body.

    Raises:
        RequestError: one has a value of the wrong type, or two exclude each other.
    """
    try:
        fields = msgspec.json.decode(body, type=RequestFields)
    except msgspec.ValidationError as error:
        param = next((name for name in RequestFields.__struct_fields__ if f"$.{name}" in str(error)), None)
        raise RequestError(f"The body is not a request: {error}", param=param) from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The body is not valid JSON: {error}", code="invalid_json") from error
    require_small_metadata(fields.metadata)
    if fields.previous_response_id is not None and fields.conversation is not None:
        message = "previous_response_id and conversation exclude each other; send one of them"
        raise RequestError(message, param="previous_response_id", code="mutually_exclusive_parameters")
    if fields.background and fields.store is False:
        raise RequestError("background needs store: true; leave one of them out", param="background")
    return fields


def editable(body: bytes) -> JsonObject:
    """Return a body to be edited; raises RequestError if it has too many members."""
    try:
        return JsonObject(body)
    except NotAnObjectError as error:
        raise RequestError(f"The body is not a request: {error}", code="invalid_json") from error


def forwarded(
    request: ModelRequest, items: Sequence[Json] | None, max_bytes: int, *, has_store: bool, has_history: bool
) -> ModelRequest:
    """Return the request for the model, with these items as its input; None leaves the input.

    If this server `has_store`, the model stores nothing. Without a store and a history, the model may know what the
    request continues.

    Raises:
        RequestError: with the items it is larger than a request may be.
    """
    document = editable(request.body)
    if has_store or has_history:
        document.change(dict.fromkeys(_OURS, remove))
    if items is not None:
        encoded = msgspec.json.encode(items)
        document.change({"input": lambda _: encoded})
    if has_store:
        document.change({"store": lambda _: b"false"})
    body = document.write()
    if len(body) > max_bytes:
        raise RequestError(
            f"With its history the request has {len(body)} bytes; server.max_body_bytes allows {max_bytes}, so begin a "
            "new conversation",
            param="input",
            code="context_length_exceeded",
        )
    return replace(request, body=body)
