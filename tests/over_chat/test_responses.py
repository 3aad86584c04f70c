"""Chat completions, whole and streamed, in the form of other protocols."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from anthropic.types import Message
from openai.types.responses import Response

from appliance.core.errors import GatewayError, UnsupportedOperationError
from appliance.core.model import Operation
from appliance.over_chat import Translator, translate

HELLO = {"model": "ours", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
TOOLS = [{"type": "custom", "name": "patch"}, {"type": "function", "name": "weather"}]
USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 5,
    "total_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


def _message(**fields: Any) -> Translator:
    return translate(Operation.MESSAGE, json.dumps(HELLO | fields).encode(), "ours")


def _response(**fields: Any) -> Translator:
    return translate(Operation.RESPONSE, json.dumps({"input": "hi", **fields}).encode(), "ours")


def _call(name: str, arguments: str, index: int = 0, call_id: str | None = "c1") -> dict[str, Any]:
    return {"index": index, "id": call_id, "function": {"name": name, "arguments": arguments}}


def _chat(finish_reason: str = "stop", usage: object = USAGE, stop_reason: object = None, **message: Any) -> bytes:
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, "stop_reason": stop_reason}
    return json.dumps({"id": "x", "choices": [choice], "usage": usage}).encode()


def _chunks(*deltas: dict[str, Any], finish_reason: str = "stop") -> list[bytes]:
    choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": finish_reason})
    chunks: list[dict[str, Any]] = [{"choices": [choice]} for choice in choices]
    return [json.dumps(chunk).encode() for chunk in [*chunks, {"choices": [], "usage": USAGE}]]


def _events(translator: Translator, chunks: Sequence[bytes]) -> list[dict[str, Any]]:
    text = b"".join([*map(translator.feed, chunks), translator.finish()]).decode()
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    assert [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")] == [
        event["type"] for event in events
    ]
    return events


@pytest.mark.parametrize(
    ("finish_reason", "stop_reason", "expected"),
    [
        ("stop", None, ("end_turn", None)),
        ("stop", "END", ("stop_sequence", "END")),
        ("stop", 151645, ("end_turn", None)),
        ("length", None, ("max_tokens", None)),
        ("content_filter", None, ("refusal", None)),
    ],
)
def test_stop_reasons_are_anthropics(finish_reason: str, stop_reason: object, expected: tuple[str, str | None]) -> None:
    """A stop sequence is known where the server tells it; a token id is none."""
    body = _message().response(_chat(finish_reason, stop_reason=stop_reason, content="hello"))
    message = Message.model_validate_json(body)

    assert (message.stop_reason, message.stop_sequence) == expected


def test_a_whole_completion_is_a_message() -> None:
    """Reasoning, text, calls and the counts, where Anthropic's leave out the tokens of the cache."""
    calls = [_call("weather", '{"city": "Paris"}'), _call("weather", "not JSON", 1, "c2")]
    body = _message().response(_chat("stop", reasoning_content="hm", content="I look.", tool_calls=calls))
    message = Message.model_validate_json(body)

    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert [block.input for block in message.content if block.type == "tool_use"] == [
        {"city": "Paris"},
        {"INVALID_JSON": "not JSON"},
    ]
    assert (message.model, message.stop_reason) == ("ours", "tool_use")
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (3, 4, 5)


def test_a_whole_completion_is_a_response() -> None:
    """Each part is an item; fields of the request are repeated, and nothing was stored."""
    calls = [_call("weather", "{}"), _call("patch", '{"input": "*** Begin"}', 1, "c2")]
    body = _response(tools=TOOLS, temperature=0.5, store=True).response(
        _chat("length", reasoning="hm", content="I look.", tool_calls=calls)
    )
    response = Response.model_validate_json(body)

    assert [item.type for item in response.output] == ["reasoning", "message", "function_call", "custom_tool_call"]
    assert [item.input for item in response.output if item.type == "custom_tool_call"] == ["*** Begin"]
    assert (response.output_text, response.model, response.temperature) == ("I look.", "ours", 0.5)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert json.loads(body)["store"] is False
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.input_tokens_details.cached_tokens) == (7, 4)
    assert (response.usage.output_tokens, response.usage.output_tokens_details.reasoning_tokens) == (5, 2)


STREAM = _chunks(
    {"role": "assistant", "content": ""},
    {"reasoning_content": "h"},
    {"reasoning_content": "m"},
    {"content": "I "},
    {"content": "look."},
    {"tool_calls": [_call("weather", "")]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": ' "Paris"}'}}]},
    {"tool_calls": [_call("patch", '{"input": "x"}', 1, "c2")]},
    finish_reason="tool_calls",
)


def test_a_call_of_a_tool_in_a_namespace_has_both_names() -> None:
    """Chat completions have no namespaces: the function's name has both, there, in the history, and in the answer."""
    tool = {"type": "function", "name": "close", "parameters": {"type": "object"}}
    call = {"type": "function_call", "call_id": "c0", "namespace": "agents", "name": "close", "arguments": "{}"}
    space = {"type": "namespace", "name": "agents", "description": "Agents.", "tools": [tool]}
    translator = _response(input=[call], tools=[space])

    response = Response.model_validate_json(translator.response(_chat(tool_calls=[_call("agents__close", "{}")])))

    assert [each["function"]["name"] for each in translator.request["tools"]] == ["agents__close"]
    assert translator.request["messages"][0]["tool_calls"][0]["function"]["name"] == "agents__close"
    (item,) = response.output
    assert (item.type, getattr(item, "namespace", None), getattr(item, "name", None)) == (
        "function_call",
        "agents",
        "close",
    )


def test_a_streamed_completion_is_a_streamed_message() -> None:
    """One block after the other, in Anthropic's order, and the usage at the end."""
    events = _events(_message(stream=True), STREAM)

    begin, delta, stop = "content_block_start", "content_block_delta", "content_block_stop"
    assert [event["type"] for event in events] == [
        "message_start",
        *(begin, delta, delta, delta, stop),
        *(begin, delta, delta, stop),
        *(begin, delta, delta, stop),
        *(begin, delta, stop),
        "message_delta",
        "message_stop",
    ]
    assert [event["index"] for event in events if event["type"] == begin] == [0, 1, 2, 3]
    deltas = [event["delta"] for event in events if event["type"] == delta]
    assert deltas[2] == {"type": "signature_delta", "signature": ""}
    assert [each["partial_json"] for each in deltas if each["type"] == "input_json_delta"] == [
        '{"city":',
        ' "Paris"}',
        '{"input": "x"}',
    ]
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 5


def test_a_streamed_completion_is_a_streamed_response() -> None:
    """One item after the other, numbered, in OpenAI's order; the last event has the whole."""
    events = _events(_response(stream=True, tools=TOOLS), STREAM)

    added, done = "output_item.added", "output_item.done"
    part = ["content_part.added", "{}.delta", "{}.delta", "{}.done", "content_part.done"]
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress"),
        *(added, *(each.format("reasoning_text") for each in part), done),
        *(added, *(each.format("output_text") for each in part), done),
        *(added, *[f"function_call_arguments.{each}" for each in ("delta", "delta", "done")], done),
        *(added, *[f"custom_tool_call_input.{each}" for each in ("delta", "done")], done),
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["output_index"] for event in events if event["type"].endswith(added)] == [0, 1, 2, 3]
    response = Response.model_validate(events[-1]["response"])
    assert response.output == [
        Response.model_validate(events[-1]["response"] | {"output": [event["item"]]}).output[0]
        for event in events
        if event["type"].endswith(done) and "item" in event
    ]
    assert (response.status, response.output_text) == ("completed", "I look.")


def test_a_server_that_never_streams_is_streamed_at_once() -> None:
    """Its whole completion is one chunk."""
    body = _chat(content="hello")
    messages = _events(_message(stream=True), [body])
    responses = _events(_response(stream=True), [body])

    assert [event["delta"]["text"] for event in messages if event["type"] == "content_block_delta"] == ["hello"]
    assert responses[-1]["response"]["output"][0]["content"][0]["text"] == "hello"


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([b'{"choices": [{"index": 0, "delta": {"content": "a"}}]}'], "ended in the middle"),
        ([b'{"error": {"message": "out of memory"}}'], "out of memory"),
        ([b"[1]"], "not a chat completion"),
        (
            _chunks(
                {"tool_calls": [_call("a", "{", 0)]},
                {"tool_calls": [_call("b", "{", 1)]},
                {"tool_calls": [_call("a", "}", 0)]},
            ),
            "mixes",
        ),
    ],
    ids=["truncated", "error", "no object", "mixed calls"],
)
def test_a_broken_stream_is_an_error_of_the_upstream(chunks: Sequence[bytes], message: str) -> None:
    """It has a message of ours."""
    with pytest.raises(GatewayError, match=message):
        _events(_message(stream=True), chunks)


def test_a_whole_answer_without_choices_is_an_error_of_the_upstream() -> None:
    """Nor is an answer without a count one for a count."""
    count = translate(Operation.COUNT_TOKENS, json.dumps(HELLO).encode(), "ours")

    with pytest.raises(UnsupportedOperationError, match="how many tokens"):
        count.response(_chat(content="x", usage=None))
    assert json.loads(count.response(_chat(content="x"))) == {"input_tokens": 7}
    with pytest.raises(GatewayError, match="no choices"):
        _message().response(b"{}")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (429, b'{"error": {"message": "slow down", "code": "c"}}', ("rate_limit_error", "slow down")),
        (400, b'{"detail": "bad"}', ("invalid_request_error", "bad")),
        (400, b'{"error": "no"}', ("invalid_request_error", "no")),
        (503, b"<html>", ("overloaded_error", "The upstream answered with the status 503.")),
        (529, b"[]", ("overloaded_error", "The upstream answered with the status 529.")),
    ],
)
def test_errors_have_the_envelope_of_the_protocol(status: int, body: bytes, expected: tuple[str, str]) -> None:
    """With the upstream's message, if there is one."""
    message = json.loads(_message().error(status, body))
    response = json.loads(_response().error(status, body))

    assert message["type"] == "error"
    assert (message["error"]["type"], message["error"]["message"]) == expected
    assert response["error"]["message"] == expected[1]


def test_a_prompt_that_is_too_long_for_the_server_is_told_in_anthropics_words() -> None:
    """By them, agents know that they must shorten their history."""
    error = {"message": "The context has 9 tokens.", "code": "context_length_exceeded", "param": "messages"}
    vllm = {"message": "This model's maximum context length is 9 tokens.", "code": 400}

    told = [json.loads(_message().error(400, json.dumps({"error": each}).encode())) for each in (error, vllm)]

    assert told[0]["error"]["message"] == "prompt is too long: The context has 9 tokens."
    assert told[1]["error"]["message"] == "prompt is too long: This model's maximum context length is 9 tokens."
