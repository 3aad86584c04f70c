"""Responses are stored, continued, listed and deleted with OpenAI's client; each key has its own."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types.responses import ResponseCompletedEvent, ResponseCreatedEvent
from server_process import ServerProcess, wait_until
from stored_server import ALICE, BOB, EMBEDDER, OTHER_MODEL, client_of
from upstreams import Answer, Asked, Upstream, event, json_answer, stream


def test_a_response_can_be_read_until_it_is_deleted(client: OpenAI) -> None:
    """It is stored unless the client says otherwise; each worker has it."""
    created = client.responses.create(model="ours", input="Hello", metadata={"a": "b"})

    assert (created.id[:5], created.model_extra) == ("resp_", {"store": True, **(created.model_extra or {})})
    for _ in range(4):
        fresh = client.with_options(default_headers={"connection": "close"})
        assert fresh.responses.retrieve(created.id) == created
    (item,) = client.responses.input_items.list(created.id).data
    shown = item.to_dict()
    assert (shown["type"], shown["role"]) == ("message", "user")
    assert shown["content"] == [{"type": "input_text", "text": "Hello"}]
    client.responses.delete(created.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(created.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(created.id)


def test_a_damaged_object_can_be_deleted(client: OpenAI, server: ServerProcess) -> None:
    """Until then it is 503, and its items are missing."""
    folder = server.log.with_name("responses")
    response, conversation = client.responses.create(model="ours", input="Hello").id, client.conversations.create().id
    (item,) = client.responses.input_items.list(response).data
    for name in (response, conversation):
        (path,) = folder.glob(f"*/{name}/*.json")
        path.write_bytes(b"")
    once = client.with_options(max_retries=0)
    with pytest.raises(openai.InternalServerError):
        once.responses.retrieve(response)
    with pytest.raises(openai.NotFoundError):
        once.responses.create(model="ours", input=[{"type": "item_reference", "id": str(item.to_dict()["id"])}])
    once.responses.delete(response)
    once.conversations.delete(conversation)

    with pytest.raises(openai.NotFoundError):
        once.responses.retrieve(response)
    with pytest.raises(openai.NotFoundError):
        once.conversations.retrieve(conversation)


def test_a_response_continues_an_earlier_one(client: OpenAI, upstream: Upstream) -> None:
    """The model gets all items in order; instructions are not inherited, and the upstream stores nothing."""
    first = client.responses.create(model="ours", input="One", instructions="Be brief.")
    client.responses.create(model="ours", input="Two", store=False)
    second = client.responses.create(model="nick", input="Three", previous_response_id=first.id)
    third = client.responses.create(
        model="ours", input=[{"role": "user", "content": "Four"}], previous_response_id=second.id
    )

    sent = upstream.calls[-1].json()
    texts = [
        each["content"] if isinstance(each["content"], str) else each["content"][0]["text"] for each in sent["input"]
    ]
    assert texts == ["One", "You said: One", "Three", "You said: Three", "Four"]
    assert sent["store"] is False
    assert not {"instructions", "previous_response_id"} & sent.keys()
    assert third.previous_response_id == second.id
    assert len(client.responses.input_items.list(third.id, order="asc").data) == 5


@pytest.mark.parametrize("instructions", [None, "Be brief."])
def test_a_response_repeats_the_clients_instructions(
    client: OpenAI, upstream: Upstream, instructions: str | None
) -> None:
    """Without the operator's system prompt, which the model gets: whole, in events, stored or not, and later."""

    def echo(asked: Asked) -> Answer:
        body = asked.json()
        kept = {"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": "completed"}
        response = {**kept, "output": [], "instructions": body["instructions"]}
        last = {"type": "response.completed", "response": response}
        return stream(event(last, "response.completed")) if body.get("stream") else json_answer(response)

    upstream.on("/v1/responses", echo)
    ask: Any = partial(client.responses.create, model="preset", input="Hello", instructions=instructions)
    whole, unstored, queued = ask(), ask(store=False), ask(background=True)
    streamed = [each.response for each in ask(stream=True) if isinstance(each, ResponseCompletedEvent)]
    wait_until(lambda: client.responses.retrieve(queued.id).status == "completed", 30)

    stored = [client.responses.retrieve(each.id) for each in (whole, queued)]
    shown = [each.instructions for each in (whole, unstored, queued, *streamed, *stored)]
    assert shown == [instructions] * 6
    assert all(call.json()["instructions"].startswith("Secret.") for call in upstream.calls)


def test_lines_of_batches_are_stored_and_continued(client: OpenAI, upstream: Upstream) -> None:
    """As other requests, without the operator's system prompt in what they show."""
    first = client.responses.create(model="ours", input="One")
    bodies: list[dict[str, Any]] = [
        {"model": "ours", "input": "Two", "previous_response_id": first.id},
        {"model": "preset", "input": "Three", "store": False, "instructions": "Be brief."},
    ]
    lines = [
        json.dumps({"custom_id": str(index), "method": "POST", "url": "/v1/responses", "body": body})
        for index, body in enumerate(bodies)
    ]
    file = client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
    wait_until(lambda: client.batches.retrieve(batch.id).status in {"completed", "failed"}, 60)

    ended = client.batches.retrieve(batch.id)
    assert ended.status == "completed", ended
    results = [json.loads(line) for line in client.files.content(str(ended.output_file_id)).text.splitlines()]
    second, third = (each["response"]["body"] for each in sorted(results, key=lambda each: each["custom_id"]))
    assert client.responses.retrieve(second["id"]).previous_response_id == first.id
    assert len(client.responses.input_items.list(second["id"]).data) == 3
    assert (third["store"], third["instructions"]) == (False, "Be brief.")
    assert max(call.json().get("instructions", "") for call in upstream.calls).startswith("Secret.")


def test_a_deleted_response_stays_in_those_that_continued_it(client: OpenAI) -> None:
    """Each response has a copy of its history."""
    first = client.responses.create(model="ours", input="One")
    second = client.responses.create(model="ours", input="Two", previous_response_id=first.id)
    client.responses.delete(first.id)

    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="ours", input="Three", previous_response_id=first.id)
    assert client.responses.create(model="ours", input="Three", previous_response_id=second.id).output_text


def test_a_stream_is_stored_when_it_ends(client: OpenAI) -> None:
    """Its events have the id under which it is stored."""
    events = list(client.responses.create(model="ours", input="Hello", stream=True))

    first, last = events[0], events[-1]
    assert (first.type, last.type) == ("response.created", "response.completed")
    assert isinstance(first, ResponseCreatedEvent)
    assert isinstance(last, ResponseCompletedEvent)
    assert first.response.id == last.response.id
    assert client.responses.retrieve(last.response.id) == last.response


def test_a_stream_that_breaks_is_not_stored(client: OpenAI, upstream: Upstream) -> None:
    """Its client gets an error, and no response can be read."""
    created = {"type": "response.created", "response": {"id": "resp_1", "object": "response", "status": "in_progress"}}
    upstream.on("/v1/responses", stream(event(created, "response.created")))

    with client.responses.create(model="ours", input="Hello", stream=True) as events:
        first = next(iter(events))

    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.response.id)  # type: ignore[union-attr]


def test_what_is_not_to_be_stored_is_not(client: OpenAI) -> None:
    """The response says so; its history may still be a stored one."""
    first = client.responses.create(model="ours", input="One")
    second = client.responses.create(model="ours", input="Two", store=False, previous_response_id=first.id)

    assert second.model_extra is not None
    assert second.model_extra["store"] is False
    assert second.previous_response_id == first.id
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)


def test_an_error_of_the_model_is_passed_on_and_not_stored(client: OpenAI, upstream: Upstream) -> None:
    """As without a store."""
    upstream.on(
        "/v1/responses", json_answer({"error": {"message": "no such tool", "type": "invalid_request_error"}}, 400)
    )

    with pytest.raises(openai.BadRequestError, match="no such tool"):
        client.responses.create(model="ours", input="Hello")


def test_reasoning_that_only_its_service_knows_is_left_out(client: OpenAI, upstream: Upstream) -> None:
    """Another server would refuse an item without content."""
    reasoning: list[dict[str, Any]] = [
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "abc"},
        {"type": "reasoning", "id": "rs_3", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
    ]
    answer = {"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": "completed"}
    upstream.on("/v1/responses", json_answer({**answer, "output": reasoning}))
    first = client.responses.create(model="ours", input="One")
    client.responses.create(model="ours", input="Two", previous_response_id=first.id)

    assert [each.get("id") for each in upstream.calls[-1].json()["input"] if each["type"] == "reasoning"] == [
        "rs_2",
        "rs_3",
    ]


def test_a_reference_stands_for_a_stored_item(server: ServerProcess, client: OpenAI, upstream: Upstream) -> None:
    """Clients send it in the place of what the model has said; that of another key is not found."""
    first = client.responses.create(model="ours", input="One")
    (said,) = first.output
    reference: Any = {"type": "item_reference", "id": said.id}

    client.responses.create(model="ours", input=[reference, {"role": "user", "content": "Two"}], store=False)
    sent = upstream.calls[-1].json()["input"]
    client.responses.create(model="ours", input=[reference], previous_response_id=first.id)
    again = upstream.calls[-1].json()["input"]

    assert [each["role"] for each in sent] == [each["role"] for each in again][::-1] == ["assistant", "user"]
    assert sent[0] == again[1] == said.to_dict()
    with client_of(server, BOB) as bob, pytest.raises(openai.NotFoundError, match="send it itself"):
        bob.responses.create(model="ours", input=[reference])


def test_another_key_finds_nothing(server: ServerProcess, client: OpenAI) -> None:
    """Every route answers as for an id that does not exist."""
    created = client.responses.create(model="ours", input="Hello")
    conversation = client.conversations.create(items=[{"role": "user", "content": "Hi"}])
    (item,) = client.conversations.items.list(conversation.id).data
    with client_of(server, BOB) as bob:
        _require_nothing_found(bob, created.id, conversation.id, item.id or "")
    assert client.responses.retrieve(created.id) == created


def _require_nothing_found(bob: OpenAI, response: str, conversation: str, item: str) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: bob.responses.retrieve(response),
        lambda: bob.responses.delete(response),
        lambda: bob.responses.cancel(response),
        lambda: bob.responses.input_items.list(response),
        lambda: bob.responses.create(model="ours", input="Hi", previous_response_id=response),
        lambda: bob.responses.create(model="ours", input="Hi", conversation=conversation),
        lambda: bob.conversations.retrieve(conversation),
        lambda: bob.conversations.update(conversation, metadata={}),
        lambda: bob.conversations.delete(conversation),
        lambda: bob.conversations.items.list(conversation),
        lambda: bob.conversations.items.create(conversation, items=[{"role": "user", "content": "Hi"}]),
        lambda: bob.conversations.items.retrieve(item, conversation_id=conversation),
        lambda: bob.conversations.items.delete(item, conversation_id=conversation),
    ]
    for attempt in attempts:
        with pytest.raises(openai.NotFoundError):
            attempt()


ROUTES = (
    ("GET", "/v1/responses/{id}"),
    ("DELETE", "/v1/responses/{id}"),
    ("POST", "/v1/responses/{id}/cancel"),
    ("GET", "/v1/responses/{id}/input_items"),
    ("GET", "/v1/conversations/{id}"),
    ("POST", "/v1/conversations/{id}"),
    ("DELETE", "/v1/conversations/{id}"),
    ("GET", "/v1/conversations/{id}/items"),
    ("POST", "/v1/conversations/{id}/items"),
    ("GET", "/v1/conversations/{id}/items/{id}"),
    ("DELETE", "/v1/conversations/{id}/items/{id}"),
)


@pytest.mark.parametrize("prefix", ["", "/openai"])
def test_every_route_needs_a_key_for_responses(server: ServerProcess, prefix: str) -> None:
    """Without a key it is 401, with one for other operations 403, under both prefixes."""
    body = {"metadata": {}, "items": [{"role": "user", "content": "Hi"}]}
    with httpx.Client(base_url=server.url + prefix) as client:
        for method, path in (*ROUTES, ("POST", "/v1/conversations")):
            expected = [401, 403, 200 if path.endswith("/conversations") else 404]
            for key, status in zip(("sk-unknown", EMBEDDER, ALICE), expected, strict=True):
                content = body if method == "POST" else None
                headers = {"Authorization": f"Bearer {key}"}
                answer = client.request(method, path.format(id="resp_" + "0" * 32), json=content, headers=headers)
                assert answer.status_code == status, (method, path, key, answer.text)
                assert status == 200 or answer.json()["error"]["message"]


def test_a_key_reads_responses_of_its_models_only(server: ServerProcess, upstream: Upstream) -> None:
    """One whose models were changed reads no more of others."""
    with client_of(server, OTHER_MODEL) as client:
        _require_own_models(server, client)


def _require_own_models(server: ServerProcess, client: OpenAI) -> None:
    mine = client.responses.create(model="other", input="Hello")
    assert client.responses.retrieve(mine.id).id == mine.id
    file = server.log.with_name("stored.yaml")
    text = file.read_text()
    try:
        _apply(server, file, text.replace("models: [other]", "models: [nick]"))
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(mine.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.create(model="nick", input="Hi", previous_response_id=mine.id)
    finally:
        _apply(server, file, text)
    assert client.responses.retrieve(mine.id).id == mine.id


def _apply(server: ServerProcess, file: Path, text: str) -> None:
    """Have both workers serve a changed file."""
    before = len(_applied(server))
    file.write_text(text)
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(_applied(server)) == before + 2, 60, server.log_tail)


def _applied(server: ServerProcess) -> list[dict[str, Any]]:
    return [each for each in server.events() if each["event"] == "config.applied"]
