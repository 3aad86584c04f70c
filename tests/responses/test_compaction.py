"""Compactions of conversations, with OpenAI's client; the cases of the Open Responses suite are here.

Source of the cases: https://github.com/openresponses/openresponses, src/lib/compliance-tests.ts.
"""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.responses import CompactedResponse
from response_sockets import open_socket, say
from server_process import ServerProcess
from stored_server import EMBEDDER, client_of
from upstreams import Answer, Asked, Upstream, error, json_answer

# A conversation of an agent, with what only the model's maker reads.
HISTORY: list[Any] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "We launch on Tuesday."},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "A launch."}]},
    {"type": "function_call", "call_id": "call_1", "name": "note", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "call_1", "output": "ok"},
    {"role": "assistant", "content": "Noted."},
]
KEPT = ["Be brief.", "We launch on Tuesday."]
ASK: Any = {"role": "user", "content": "When?"}
TRIGGER: Any = {"type": "compaction_trigger"}
FOREIGN: Any = {"type": "compaction", "encrypted_content": "gAAAAABo"}
DAMAGED: Any = {"type": "compaction", "encrypted_content": "appliance-1.AAAAAAAAAAAAAAAA"}

# Fields of a request, the status of its error, and the field at fault.
WRONG: dict[str, tuple[dict[str, Any], int, str | None]] = {
    "no model": ({"model": None}, 400, "model"),
    "unknown model": ({"model": "no"}, 404, "model"),
    "no items": ({"input": []}, 400, "input"),
    "streamed": ({"stream": True}, 400, "stream"),
    "in the background": ({"background": True}, 400, "background"),
    "unknown previous": ({"previous_response_id": "resp_no"}, 404, "previous_response_id"),
    "damaged": ({"input": [ASK, DAMAGED]}, 400, "input[1]"),
    "without content": ({"input": [ASK, {"type": "compaction"}]}, 400, "input[1]"),
    "of another server": ({"input": [ASK, FOREIGN]}, 400, "input[1]"),
}


def _read(asked: Asked) -> list[str]:
    """Return the texts of a request's messages, and the types of its other items."""
    body = asked.json()
    contents = [each.get("content") or each.get("type", "") for each in body.get("input") or body["messages"]]
    return [each if isinstance(each, str) else each[0]["text"] for each in contents]


def _items(compacted: CompactedResponse) -> list[Any]:
    # The type of OpenAI's client for a message is that of the assistant alone.
    return [each.to_dict(warnings=False) for each in compacted.output]


def test_a_model_summarizes_what_is_compacted(client: OpenAI, upstream: Upstream) -> None:
    """The messages of the user stay, and the summary follows; the next request has both, and nothing else."""
    tools: Any = [{"type": "function", "name": "note", "parameters": {"type": "object"}}]
    extra = {"tools": tools, "prompt_cache_key": "a", "text": {"format": {"type": "json_object"}}}
    compacted = client.responses.compact(model="nick", input=HISTORY, instructions="Be kind.", extra_body=extra)

    asked = upstream.calls[-1].json()
    # An upstream without compactions writes the summary as any response.
    assert [call.path for call in upstream.calls] == ["/v1/responses/compact", "/v1/responses"]
    assert (asked["tools"], asked["tool_choice"], asked["store"]) == (tools, "none", False)
    assert (asked["instructions"], asked["prompt_cache_key"]) == ("Be kind.", "a")
    assert not {"text", "stream"} & asked.keys()
    *history, prompt = _read(upstream.calls[-1])
    assert history == [*KEPT, *(each["type"] for each in HISTORY[2:5]), "Noted."]
    *kept, compaction = _items(compacted)
    assert (compacted.object, compaction["type"]) == ("response.compaction", "compaction")
    assert [each["content"][0]["text"] for each in kept] == KEPT
    assert all(each.keys() >= {"id", "type", "status", "role"} for each in kept)

    response = client.responses.create(model="ours", input=[*kept, compaction, ASK])
    *read, summary, ask = _read(upstream.calls[-1])
    assert (read, f"You said: {prompt}" in summary, ask) == (KEPT, True, "When?")
    stored = client.responses.input_items.list(response.id, order="asc").data
    assert [each.type for each in stored] == ["message", "message", "compaction", "message"]
    assert stored[2].to_dict()["encrypted_content"] == compaction["encrypted_content"]


def test_a_compaction_replaces_what_came_before_it(client: OpenAI, upstream: Upstream) -> None:
    """In chains, conversations and earlier compactions; without the server's store, too."""
    (_, _, compaction) = _items(client.responses.compact(model="chats", input=HISTORY))
    assert [call.path for call in upstream.calls] == ["/v1/chat/completions"]

    first = client.responses.create(model="chats", input=[*HISTORY, compaction, ASK])
    client.responses.create(model="chats", input="And where?", previous_response_id=first.id)
    chained = _read(upstream.calls[-1])
    again = client.responses.compact(model="chats", previous_response_id=first.id)
    conversation = client.conversations.create(items=[*HISTORY, compaction]).id
    client.responses.create(model="chats", input=[ASK], conversation=conversation, store=False)
    in_conversation = _read(upstream.calls[-1])

    assert (chained[:2], chained[3], chained[-1], len(chained)) == (KEPT, "When?", "And where?", 6)
    assert chained[2] == in_conversation[2]
    assert in_conversation[3:] == ["When?"]
    assert [each["type"] for each in _items(again)] == ["message", "message", "message", "compaction"]


def test_an_upstream_with_compactions_makes_them(client: OpenAI, upstream: Upstream) -> None:
    """It gets the request with its history, and reads its own items, which nobody else does."""
    made = {"id": "resp_1", "object": "response.compaction", "created_at": 1, "output": [FOREIGN]}
    upstream.on("/v1/responses/compact", json_answer({**made, "usage": None}))
    first = client.responses.create(model="ours", input=HISTORY)

    compacted = client.responses.compact(model="ours", input=[ASK], previous_response_id=first.id)
    asked = _read(upstream.calls[-1])
    events = list(client.responses.create(model="ours", input=[*_items(compacted), ASK, TRIGGER], stream=True))
    route = upstream.calls[-1]
    client.responses.create(model="ours", input=[*_items(compacted), ASK])

    assert (asked[:2], asked[-1]) == (KEPT, "When?")
    assert _items(compacted) == [FOREIGN]
    last: Any = events[-1]
    assert [each.to_dict() for each in last.response.output] == [FOREIGN]
    assert (route.path, set(route.json())) == ("/v1/responses/compact", {"model", "input"})
    assert [_read(each) for each in (route, upstream.calls[-1])] == [["compaction", "When?"]] * 2


@pytest.mark.parametrize(
    "answer", [error(405, "Method Not Allowed"), error(400, "no such field"), json_answer({"object": "page"})]
)
def test_an_upstream_without_compactions_is_asked_for_a_summary(
    client: OpenAI, upstream: Upstream, answer: Answer
) -> None:
    """It never gets the item that requests one, which may be an error of the server there; its own errors stay."""
    upstream.on("/v1/responses/compact", answer)
    events = list(client.responses.create(model="ours", input=[*HISTORY, TRIGGER], stream=True))

    last: Any = events[-1]
    assert [each.type for each in last.response.output] == ["compaction"]
    assert [each.path for each in upstream.calls] == ["/v1/responses/compact", "/v1/responses"]
    assert "compaction_trigger" not in _read(upstream.calls[0])
    assert "Summarize" in _read(upstream.calls[1])[-1]

    upstream.on("/v1/responses", error(400, "too hot", param="temperature"))
    with pytest.raises(openai.BadRequestError, match="too hot"):
        client.responses.create(model="ours", input=[*HISTORY, TRIGGER])


@pytest.mark.parametrize("case", WRONG)
def test_an_error_names_what_is_wrong(client: OpenAI, upstream: Upstream, case: str) -> None:
    """Before the model is asked."""
    fields, status, param = WRONG[case]

    with pytest.raises(openai.APIStatusError) as raised:
        client.post("/responses/compact", body={"model": "chats", "input": "Hi"} | fields, cast_to=object)

    assert (raised.value.status_code, raised.value.param) == (status, param), raised.value.body
    assert not upstream.calls


def test_a_key_without_responses_compacts_none(server: ServerProcess, client: OpenAI) -> None:
    """Nor does a damaged compaction get into a conversation."""
    with client_of(server, EMBEDDER) as embedder, pytest.raises(openai.PermissionDeniedError):
        embedder.responses.compact(model="ours", input="Hi")

    with pytest.raises(openai.BadRequestError) as raised:
        client.conversations.create(items=[DAMAGED])
    assert raised.value.param == "items[0]"


def test_a_model_without_a_summary_is_an_error(client: OpenAI, upstream: Upstream) -> None:
    """A client must not lose its history for nothing."""
    for text in (None, " \n"):
        message = {"role": "assistant", "content": text}
        choices = [{"index": 0, "message": message, "finish_reason": "length"}]
        upstream.on("/v1/chat/completions", json_answer({"id": "a", "object": "chat.completion", "choices": choices}))

        with pytest.raises(openai.UnprocessableEntityError, match="no summary"):
            client.responses.compact(model="chats", input="Hi")

    # Nothing of this is a text.
    output = [{}, {"type": "message", "content": "x"}, {"type": "message", "content": [1, {"type": "output_text"}]}]
    upstream.on("/v1/responses", json_answer({"id": "resp_1", "object": "response", "output": output}))
    with pytest.raises(openai.UnprocessableEntityError, match="no summary"):
        client.responses.compact(model="ours", input="Hi")


def test_an_item_requests_the_compaction_as_a_response(client: OpenAI, server: ServerProcess) -> None:
    """As Codex does: whole, streamed, or over a WebSocket; it is continued as any response."""
    whole = client.responses.create(model="chats", input=[*HISTORY, TRIGGER])
    events = list(client.responses.create(model="chats", input=[*HISTORY, TRIGGER], stream=True))
    with open_socket(server) as socket:
        last = say(socket, model="chats", input=[*HISTORY, TRIGGER])["response"]
        continued = say(socket, model="chats", previous_response_id=last["id"])

    added = ["response.output_item.added", "response.output_item.done"]
    assert [each.type for each in events] == ["response.created", *added, "response.completed"]
    assert [each.type for each in whole.output] == ["compaction"]
    assert [each["type"] for each in last["output"]] == ["compaction"]
    assert client.responses.retrieve(whole.id) == whole
    assert len(client.responses.input_items.list(whole.id).data) == len(HISTORY)
    assert continued["response"]["previous_response_id"] == last["id"]


def test_what_was_compacted_begins_a_chain_over_a_websocket(client: OpenAI, server: ServerProcess) -> None:
    """The case `websocket-compact-new-chain`."""
    window = _items(client.responses.compact(model="ours", input=HISTORY))

    with open_socket(server) as socket:
        last = say(socket, input=[*window, ASK])
        damaged = say(socket, input=[*window, DAMAGED])

    assert last["response"]["status"] == "completed"
    assert (damaged["status"], damaged["error"]["param"]) == (400, "input[3]")
