"""Conversations: lists of items that requests continue.

Source: https://platform.openai.com/docs/api-reference/conversations
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from appliance.core.errors import RequestError
from appliance.core.openai_types import Json, now, require_small_metadata
from appliance.core.stored_objects import DamagedObjectError, ObjectKey, StoredObjects, decode_stored, new_object_id
from appliance.responses.compaction import summary_of
from appliance.responses.items import checked_items, with_id
from appliance.responses.store import CONVERSATION, NotStoredError, current_owner

Result = TypeVar("Result")

_FILE = "conversation.json"

# OpenAI's limit.
MAX_NEW_ITEMS = 20

# More do not end between a crash and the next start.
_MAX_TURNS = 64

_MAX_SHOWN = 80


class Conversation(msgspec.Struct):
    """A conversation as it is stored."""

    id: str
    created_at: int
    metadata: dict[str, str]
    items: list[Json] = []
    turns: dict[str, list[str]] = {}
    """The ids of the items that the last responses have added, by the ids of these."""

    def shown(self) -> Json:
        """Return the conversation object."""
        head = {"id": self.id, "object": "conversation"}
        return {**head, "created_at": self.created_at, "metadata": self.metadata}

    def item(self, item_id: str) -> Json:
        """Return one of its items; raises NotStoredError if there is none."""
        found = next((each for each in self.items if each.get("id") == item_id), None)
        if found is None:
            raise NotStoredError(f"Item with id {item_id[:_MAX_SHOWN]!r} not found.", param="item_id")
        return found


class ConversationBody(msgspec.Struct):
    """The body of a request that creates or changes a conversation."""

    metadata: dict[str, str] | None = None
    items: list[Json] | None = None


def decode_body(body: bytes) -> ConversationBody:
    """Return the body of a request; an empty one has no fields.

    Raises:
        RequestError: it is wrong, or has more than OpenAI allows.
    """
    try:
        decoded = msgspec.json.decode(body or b"{}", type=ConversationBody)
    except msgspec.ValidationError as error:
        param = next((name for name in ConversationBody.__struct_fields__ if f"$.{name}" in str(error)), None)
        raise RequestError(f"The body is not a request: {error}", param=param) from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The body is not valid JSON: {error}", code="invalid_json") from error
    require_small_metadata(decoded.metadata)
    items = decoded.items or []
    if len(items) > MAX_NEW_ITEMS:
        raise RequestError(f"items has {len(items)} items; at most {MAX_NEW_ITEMS} are added at once", param="items")
    decoded.items = checked_items(items)
    for index, item in enumerate(decoded.items):
        summary_of(item, f"items[{index}]")
    return decoded


@dataclass(frozen=True, slots=True)
class Conversations:
    """The conversations in a store of objects, each of the current caller."""

    objects: StoredObjects
    max_bytes: Callable[[], int]
    """The limit of one conversation, which is that of a request."""

    async def create(self, body: ConversationBody) -> Conversation:
        """Create a conversation."""
        made = Conversation(new_object_id(CONVERSATION), now(), body.metadata or {}, body.items or [])
        await asyncio.to_thread(self._write, ObjectKey(current_owner(), made.id), made, must_exist=False)
        return made

    async def find(self, conversation_id: str) -> Conversation:
        """Return a conversation; raises NotStoredError."""
        return await asyncio.to_thread(self._read, _key(conversation_id))

    async def set_metadata(self, conversation_id: str, metadata: dict[str, str]) -> Conversation:
        """Replace the metadata."""

        def change(conversation: Conversation) -> None:
            conversation.metadata = metadata

        return await self._change(_key(conversation_id), change)

    async def add_turn(self, key: ObjectKey, response_id: str, items: Sequence[Json]) -> Conversation:
        """Add the items of a response at the end; one whose id is taken gets another one.

        A response that was interrupted and made again replaces the items that it had added.
        """

        def change(conversation: Conversation) -> None:
            before = conversation.turns.pop(response_id, [])
            conversation.items = [each for each in conversation.items if each["id"] not in before]
            taken = {each["id"] for each in conversation.items}
            new = [with_id({**each, "id": None} if each.get("id") in taken else each) for each in items]
            conversation.items.extend(new)
            conversation.turns[response_id] = [each["id"] for each in new]
            for oldest in list(conversation.turns)[:-_MAX_TURNS]:
                del conversation.turns[oldest]

        return await self._change(key, change)

    async def add_own(self, conversation_id: str, items: Sequence[Json]) -> Conversation:
        """Add items at the end of a conversation of the current caller; raises RequestError if an id is taken."""

        def change(conversation: Conversation) -> None:
            taken = {each.get("id") for each in conversation.items}
            for index, item in enumerate(items):
                if item["id"] in taken:
                    text = f"items[{index}].id is {item['id']!r}, which an item of the conversation has already"
                    raise RequestError(f"{text}; leave it out", param=f"items[{index}].id")
            conversation.items.extend(items)

        return await self._change(_key(conversation_id), change)

    async def delete_item(self, conversation_id: str, item_id: str) -> Conversation:
        """Delete an item; raises NotStoredError."""
        return await self._change(
            _key(conversation_id), lambda conversation: conversation.items.remove(conversation.item(item_id))
        )

    async def delete(self, conversation_id: str) -> None:
        """Delete a conversation; responses in it stay. Raises NotStoredError."""
        key = _key(conversation_id)
        with suppress(DamagedObjectError):
            await asyncio.to_thread(self._read, key)
        await asyncio.to_thread(self.objects.delete, key)

    async def _change(self, key: ObjectKey, change: Callable[[Conversation], object]) -> Conversation:
        def work() -> Conversation:
            with self.objects.locked(key):
                conversation = self._read(key)
                change(conversation)
                self._write(key, conversation, must_exist=True)
            return conversation

        return await asyncio.to_thread(work)

    def _read(self, key: ObjectKey) -> Conversation:
        data = self.objects.read(key, _FILE) if key.id.startswith(CONVERSATION) else None
        if data is None:
            raise _missing(key)
        return decode_stored(key, data, Conversation)

    def _write(self, key: ObjectKey, conversation: Conversation, *, must_exist: bool) -> None:
        data = msgspec.json.encode(conversation)
        if len(data) > (limit := self.max_bytes()):
            raise RequestError(
                f"The conversation would have {len(data)} bytes; server.max_body_bytes allows {limit}, so delete some "
                "items, or begin a new one",
                param="conversation",
                code="conversation_too_large",
            )
        if not self.objects.write(key, _FILE, data, must_exist=must_exist):
            raise _missing(key)


def _key(conversation_id: str) -> ObjectKey:
    return ObjectKey(current_owner(), conversation_id)


def _missing(key: ObjectKey) -> NotStoredError:
    return NotStoredError(f"Conversation with id {key.id[:_MAX_SHOWN]!r} not found.", param="conversation")
