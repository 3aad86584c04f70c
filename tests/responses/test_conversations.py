"""Conversations with OpenAI's client: items are kept, and requests continue them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import openai
import pytest
from openai import OpenAI
from openai.types.responses import EasyInputMessageParam
from server_process import wait_until
from upstreams import Upstream, error

from appliance.core.stored_objects import ObjectKey, StoredObjects
from appliance.responses.conversations import ConversationBody, Conversations


def user(text: str) -> EasyInputMessageParam:
    """Return a message of the user."""
    return {"role": "user", "content": text}


def texts(client: OpenAI, conversation: str) -> list[str]:
    """Return the texts of a conversation, the oldest first."""
    items = client.conversations.items.list(conversation, order="asc", limit=100)
    return [cast("Any", item).content[0].text for item in items]


def test_a_conversation_is_created_changed_and_deleted(client: OpenAI) -> None:
    """With its metadata and its first items."""
    created = client.conversations.create(metadata={"topic": "a"}, items=[user("One"), user("Two")])
    assert (created.id[:5], created.object, created.metadata) == ("conv_", "conversation", {"topic": "a"})
    assert client.conversations.retrieve(created.id) == created

    changed = client.conversations.update(created.id, metadata={"topic": "b"})

    assert changed.metadata == {"topic": "b"}
    assert texts(client, created.id) == ["One", "Two"]
    assert client.conversations.delete(created.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.conversations.retrieve(created.id)


def test_items_are_added_read_and_deleted(client: OpenAI) -> None:
    """Each has an id; the newest one is listed first unless the client says otherwise."""
    conversation = client.conversations.create().id
    added = client.conversations.items.create(conversation, items=[user(str(each)) for each in range(3)])
    ids = [item.id or "" for item in added.data]
    assert added.first_id == ids[0]
    assert len(set(ids)) == 3

    assert client.conversations.items.retrieve(ids[1], conversation_id=conversation) == added.data[1]
    assert [item.id for item in client.conversations.items.list(conversation)] == ids[::-1]
    first = client.conversations.items.list(conversation, limit=2, order="asc")
    assert ([item.id for item in first.data], first.has_more, first.last_id) == (ids[:2], True, ids[1])
    rest = client.conversations.items.list(conversation, after=ids[1], order="asc")
    assert [item.id for item in rest.data] == ids[2:]

    assert client.conversations.items.delete(ids[1], conversation_id=conversation).id == conversation
    assert texts(client, conversation) == ["0", "2"]
    with pytest.raises(openai.NotFoundError):
        client.conversations.items.retrieve(ids[1], conversation_id=conversation)


def test_an_id_is_given_once(client: OpenAI) -> None:
    """A second item with it is refused, and adds nothing."""
    item: Any = {**user("One"), "id": "msg_mine"}
    conversation = client.conversations.create(items=[item]).id

    with pytest.raises(openai.BadRequestError, match=r"items\[1\].id"):
        client.conversations.items.create(conversation, items=[user("Two"), item])

    assert texts(client, conversation) == ["One"]


@pytest.mark.parametrize("mode", ["whole", "streamed", "background", "not stored"])
def test_a_response_continues_its_conversation(client: OpenAI, upstream: Upstream, mode: str) -> None:
    """Its input and output become items of the conversation, each with an id of its own."""
    conversation = client.conversations.create(items=[user("Zero")]).id
    for text in ("One", "Two"):
        answer = client.responses.create(
            model="ours",
            input=text,
            conversation=conversation if text == "One" else {"id": conversation},
            stream=mode == "streamed",
            background=mode == "background",
            store=mode != "not stored",
        )
        if isinstance(answer, openai.Stream):
            answer = cast("Any", list(answer)[-1]).response
        assert answer.conversation is not None
        assert answer.conversation.id == conversation
        if mode == "background":
            _wait_for(client, answer.id)

    assert texts(client, conversation) == ["Zero", "One", "You said: One", "Two", "You said: Two"]
    sent = upstream.calls[-1].json()
    assert len(sent["input"]) == 4
    assert "conversation" not in sent
    assert len({item.id for item in client.conversations.items.list(conversation)}) == 5


def _wait_for(client: OpenAI, response_id: str) -> None:
    wait_until(lambda: client.responses.retrieve(response_id).status == "completed", 60)


async def test_a_response_that_is_made_again_adds_one_turn(tmp_path: Path) -> None:
    """Its process died after it had extended the conversation, before it could store the response."""
    objects = StoredObjects(tmp_path / "store", keep_seconds=3600, max_bytes=1 << 20)
    objects.open()
    conversations = Conversations(objects, lambda: 1 << 20)
    key = ObjectKey("", (await conversations.create(ConversationBody())).id)
    asked = {"type": "message", "role": "user", "content": "Hi", "id": "msg_1"}
    await conversations.add_turn(key, "resp_0", [{**asked, "id": "msg_0"}])

    for attempt in ("a", "b"):
        await conversations.add_turn(key, "resp_1", [asked, {**asked, "id": f"msg_{attempt}"}])
        if attempt == "a":
            await conversations.add_turn(key, "resp_2", [{**asked, "id": "msg_2"}])

    items = (await conversations.find(key.id)).items
    assert [each["id"] for each in items] == ["msg_0", "msg_2", "msg_1", "msg_b"]


def test_a_failed_response_adds_nothing(client: OpenAI, upstream: Upstream) -> None:
    """The client may send it again."""
    conversation = client.conversations.create().id
    upstream.on("/v1/responses", error(400, "no such tool"))

    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="ours", input="One", conversation=conversation)

    assert client.conversations.items.list(conversation).data == []


def test_responses_at_once_lose_no_item(client: OpenAI) -> None:
    """Two workers may add to one conversation."""
    conversation = client.conversations.create().id
    running = [
        client.responses.create(model="ours", input=str(each), conversation=conversation, background=True)
        for each in range(6)
    ]

    for each in running:
        _wait_for(client, each.id)

    items = texts(client, conversation)
    assert sorted(items) == sorted([*map(str, range(6)), *(f"You said: {each}" for each in range(6))])
