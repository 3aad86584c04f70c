"""What coding agents and chat front ends send, by their protocols and documentation, and what a model answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from server_process import ServerProcess, failed_expectations

pytestmark = [pytest.mark.slow]

RECORDINGS = {
    f"{file.stem}: {recording['name']}": recording
    for file in sorted((Path(__file__).parent / "agents").glob("*.json"))
    for recording in json.loads(file.read_text(encoding="utf-8"))
}

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "agents.yaml"

USER = {"role": "user", "content": "Hi"}

ENDS = (b"event: message_stop", b"event: response.completed", b"event: response.incomplete", b"data: [DONE]")


def _body(recording: dict[str, Any]) -> dict[str, Any]:
    return {**recording["body"], "model": "smollm2"}


@pytest.mark.parametrize("name", [name for name, each in RECORDINGS.items() if "refused" not in each])
def test_what_an_agent_sends_is_answered(server: ServerProcess, name: str) -> None:
    """A stream runs to its end; a call that the request forces fits its tool, although no tool is strict."""
    recording = RECORDINGS[name]
    path, headers = recording["path"], recording.get("headers", {})

    if recording["body"].get("stream"):
        events = server.stream(path, _body(recording), headers)
        assert any(end in events for end in ENDS), events
        assert b"event: error" not in events
    else:
        status, answer = server.ask(path, _body(recording), headers)
        assert status == 200, answer
        assert _arguments(answer) == ([recording["calls"]] if "calls" in recording else []), answer


def _arguments(answer: dict[str, Any]) -> list[Any]:
    """Return the arguments of an answer's first call, in whatever protocol."""
    calls = [block["input"] for block in answer.get("content", ()) if block["type"] == "tool_use"]
    calls += [json.loads(item["arguments"]) for item in answer.get("output", ()) if item["type"] == "function_call"]
    for choice in answer.get("choices", ()):
        calls += [json.loads(call["function"]["arguments"]) for call in choice["message"].get("tool_calls") or ()]
    return calls[:1]


@pytest.mark.parametrize("name", [name for name, each in RECORDINGS.items() if "refused" in each])
def test_what_cannot_be_served_is_refused_by_its_path(server: ServerProcess, name: str) -> None:
    """The error names the item, and says what to leave out."""
    recording = RECORDINGS[name]

    status, answer = server.ask(recording["path"], _body(recording), recording.get("headers", {}))

    assert status == 400, answer
    assert answer["error"].get("param", recording["refused"]) == recording["refused"], answer
    assert all(word in answer["error"]["message"] for word in recording["says"]), answer


def test_a_prompt_that_is_too_long_is_told_as_agents_know_it(server: ServerProcess) -> None:
    """Claude Code knows Anthropic's words, others OpenAI's code; then they shorten their history."""
    text, limit = "a history " * 2000, {"max_tokens": 5}
    messages = {"model": "smollm2", "messages": [{"role": "user", "content": text}]}

    _, anthropics = server.post("/v1/messages", messages | limit)
    _, chat = server.post("/v1/chat/completions", messages | limit)
    _, response = server.post("/v1/responses", {"model": "smollm2", "input": text})

    assert anthropics["error"]["message"].startswith("prompt is too long: ")
    assert {each["error"]["code"] for each in (anthropics, chat, response)} == {"context_length_exceeded"}
    _, refusal = server.post("/v1/messages", {**messages, "messages": [USER], "max_tokens": 100_000})
    assert "prompt is too long" not in refusal["error"]["message"]


def test_codex_compacts_its_history_and_goes_on(server: ServerProcess) -> None:
    """By the route, as OpenAI's clients do, or by an item at the end of a turn; another server's content is refused."""
    body = _body(RECORDINGS["codex: a turn after tools that ran in parallel"])
    history, go_on = body["input"], {"type": "message", "role": "user", "content": "Go on."}
    unsent = {"stream", "store", "include", "tool_choice", "client_metadata"}

    status, compacted = server.ask("/v1/responses/compact", {key: body[key] for key in body.keys() - unsent})
    assert (status, compacted["object"]) == (200, "response.compaction"), compacted
    assert compacted["usage"]["output_tokens_details"]["reasoning_tokens"] == 0
    assert [each["type"] for each in compacted["output"]] == ["message", "message", "message", "compaction"]
    status, answer = server.ask("/v1/responses", {**body, "stream": False, "input": [*compacted["output"], go_on]})
    assert (status, answer["output"][-1]["type"]) == (200, "message"), answer
    assert answer["usage"]["input_tokens"] < compacted["usage"]["input_tokens"]

    events = server.stream("/v1/responses", {**body, "input": [*history, {"type": "compaction_trigger"}]})
    assert b"event: response.completed" in events
    assert events.count(b'"type":"compaction"') == 3


def test_the_example_for_agents_keeps_its_promises(server: ServerProcess) -> None:
    """What `smoke` sends to the example's own server gets the same answers here."""
    assert failed_expectations(server, EXAMPLE) == []
