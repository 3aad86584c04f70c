"""Official clients of messages and responses, through a proxy to an upstream that has chat completions alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from server_process import ServerProcess
from upstreams import Answer, Upstream, error, event, json_answer, stream

CHAT = "/v1/chat/completions"
LACKING = ("/v1/messages", "/v1/messages/count_tokens", "/v1/responses")

CONFIG = """
models:
- name: ours
  class: proxy
  upstreams:
  - url: {url}
    model: theirs
    translate: [messages, responses]
    request: {{defaults: {{top_p: 0.5}}, drop: [metadata]}}
  health: {{interval_seconds: 3600}}
  breaker: {{failures: 1000000}}
  retry: {{attempts: 0}}
- name: untranslated
  class: proxy
  upstreams: [{{url: {url}}}]
"""

SCHEMA: Any = {"type": "object", "properties": {"city": {"type": "string"}}}
HELLO: Any = [{"role": "user", "content": "grüß dich"}]


@pytest.fixture(scope="module")
def proxy(_upstreams: tuple[Upstream, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One proxy for the whole file."""
    folder: Path = tmp_path_factory.mktemp("over-chat")
    file = folder / "proxy.yaml"
    file.write_text(CONFIG.format(url=_upstreams[0].url))
    served = ServerProcess(file, folder / "log").wait_until_ready(30)
    yield served
    assert served.stop() == 0, served.log_tail()


@pytest.fixture
def chat_only(upstream: Upstream) -> Upstream:
    """An upstream without the other protocols."""
    for path in LACKING:
        upstream.on(path, json_answer({"detail": "Not Found"}, 404))
    return upstream


@pytest.fixture
def claude(proxy: ServerProcess) -> Iterator[anthropic.Anthropic]:
    """Anthropic's client."""
    with anthropic.Anthropic(base_url=proxy.url, api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture
def gpt(proxy: ServerProcess) -> Iterator[openai.OpenAI]:
    """OpenAI's client."""
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0) as client:
        yield client


def test_anthropics_client_is_served(claude: anthropic.Anthropic, chat_only: Upstream) -> None:
    """Whole, streamed and counted; the upstream gets the chat completion that its config changes."""
    whole = claude.messages.create(model="ours", max_tokens=20, system="Be brief.", messages=HELLO)
    with claude.messages.stream(model="ours", max_tokens=20, messages=HELLO) as events:
        streamed = "".join(events.text_stream)
        final = events.get_final_message()
    count = claude.messages.count_tokens(model="ours", messages=HELLO)

    assert [block.text for block in whole.content if block.type == "text"] == ["You said: grüß dich"]
    assert (whole.model, whole.stop_reason, whole.usage.input_tokens) == ("ours", "end_turn", 3)
    assert (streamed, final.stop_reason) == ("You said: grüß dich", "end_turn")
    assert (final.usage.input_tokens, final.usage.output_tokens) == (3, 4)
    assert count.input_tokens == 3
    assert [each.path for each in chat_only.calls] == [CHAT] * 3
    assert chat_only.calls[0].json() == {
        "model": "theirs",
        "messages": [{"role": "system", "content": "Be brief."}, *HELLO],
        "max_tokens": 20,
        "top_p": 0.5,
    }
    assert chat_only.calls[0].header("anthropic-version") is None


def test_tokens_of_an_upstream_that_does_not_count_are_refused(
    claude: anthropic.Anthropic, chat_only: Upstream
) -> None:
    """With 400: clients would repeat a request that failed with 5xx, in vain."""
    message = {"role": "assistant", "content": "a"}
    chat_only.on(CHAT, json_answer({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}))

    with pytest.raises(anthropic.BadRequestError, match="does not say how many tokens"):
        claude.messages.count_tokens(model="ours", messages=HELLO)


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_anthropics_client_calls_tools(claude: anthropic.Anthropic, chat_only: Upstream, is_streamed: bool) -> None:
    """And the upstream gets their results."""
    tools: Any = [{"name": "weather", "description": "d", "input_schema": SCHEMA}]
    if is_streamed:
        with claude.messages.stream(model="ours", max_tokens=20, messages=HELLO, tools=tools) as events:
            message: anthropic.types.Message = events.get_final_message()
    else:
        message = claude.messages.create(model="ours", max_tokens=20, messages=HELLO, tools=tools)
    (call,) = [block for block in message.content if block.type == "tool_use"]
    history: Any = [
        *HELLO,
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "22 C"}]},
    ]
    answer = claude.messages.create(model="ours", max_tokens=20, messages=history, tools=tools)

    assert (message.stop_reason, call.name, call.input) == ("tool_use", "weather", {"city": "Paris"})
    assert [block.text for block in answer.content if block.type == "text"] == ["You said: 22 C"]
    assert [each["role"] for each in chat_only.calls[-1].json()["messages"]] == ["user", "assistant", "tool"]


def test_openais_client_is_served_responses(gpt: openai.OpenAI, chat_only: Upstream) -> None:
    """Whole and streamed, with its usage; nothing is stored."""
    whole = gpt.responses.create(model="ours", input="grüß dich", instructions="Be brief.")
    with gpt.responses.stream(model="ours", input="grüß dich") as events:
        streamed = "".join(each.delta for each in events if each.type == "response.output_text.delta")
        final = events.get_final_response()

    assert (whole.output_text, whole.model, whole.status) == ("You said: grüß dich", "ours", "completed")
    assert whole.usage is not None
    assert whole.usage.total_tokens == 7
    assert (streamed, final.output_text, final.usage) == (whole.output_text, whole.output_text, whole.usage)
    assert chat_only.calls[0].json()["messages"] == [{"role": "system", "content": "Be brief."}, *HELLO]


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_openais_client_calls_tools_in_responses(gpt: openai.OpenAI, chat_only: Upstream, is_streamed: bool) -> None:
    """And the upstream gets their results."""
    tools: Any = [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}]
    if is_streamed:
        with gpt.responses.stream(model="ours", input=HELLO, tools=tools) as events:
            response: Any = events.get_final_response()
    else:
        response = gpt.responses.create(model="ours", input=HELLO, tools=tools)
    (call,) = [item for item in response.output if item.type == "function_call"]
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "22 C"}
    history = [*HELLO, *[item.model_dump(exclude={"parsed_arguments"}) for item in response.output], output]
    answer = gpt.responses.create(model="ours", input=history, tools=tools)

    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Paris"})
    assert answer.output_text == "You said: 22 C"
    assert [each["role"] for each in chat_only.calls[-1].json()["messages"]] == ["user", "assistant", "tool"]


def test_errors_of_the_upstream_have_the_envelope_of_the_protocol(
    claude: anthropic.Anthropic, gpt: openai.OpenAI, chat_only: Upstream
) -> None:
    """With its status and message; in a stream that breaks, too."""
    chat_only.on(CHAT, error(429, "slow down"))
    with pytest.raises(anthropic.RateLimitError, match="slow down") as limited:
        claude.messages.create(model="ours", max_tokens=20, messages=HELLO)
    with pytest.raises(openai.RateLimitError, match="slow down"):
        gpt.responses.create(model="ours", input="hi")
    chat_only.on(CHAT, stream(event({"choices": [{"index": 0, "delta": {"content": "a"}}]})))
    with (
        pytest.raises(anthropic.APIError, match="ended in the middle"),
        claude.messages.stream(model="ours", max_tokens=20, messages=HELLO) as events,
    ):
        events.get_final_message()

    assert isinstance(limited.value.body, dict)
    assert limited.value.body["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize(("path", "protocol"), [*zip(LACKING, ("messages", "messages", "responses"), strict=True)])
def test_an_upstream_without_the_protocol_is_named_with_the_remedy(
    proxy: ServerProcess, chat_only: Upstream, path: str, protocol: str
) -> None:
    """But not one without the model, whose error is forwarded."""
    body = {"model": "untranslated", "messages": HELLO, "input": "hi", "max_tokens": 9}
    lacking = httpx.post(f"{proxy.url}{path}", json=body)
    chat_only.on(path, error(404, "The model `untranslated` does not exist", code="model_not_found"))
    unknown = httpx.post(f"{proxy.url}{path}", json=body)

    assert (lacking.status_code, unknown.status_code) == (404, 404)
    assert f"`translate: [{protocol}]`" in lacking.json()["error"]["message"]
    assert unknown.json()["error"]["code"] == "model_not_found"


def test_tokens_of_translated_requests_are_counted(proxy: ServerProcess, chat_only: Upstream) -> None:
    """By the usage of the upstream, streamed or not."""

    def counted() -> float:
        text = httpx.get(f"{proxy.url}/metrics").text
        lines = [line for line in text.splitlines() if line.startswith("appliance_tokens_total{")]
        return sum(float(line.split()[-1]) for line in lines if 'direction="input",model="ours"' in line)

    before = counted()
    for is_streamed in (False, True):
        body = {"model": "ours", "messages": HELLO, "max_tokens": 9, "stream": is_streamed}
        httpx.post(f"{proxy.url}/v1/messages", json=body).raise_for_status()
    chat_only.on(CHAT, Answer(body=b"<html>"))
    broken = httpx.post(f"{proxy.url}/v1/messages", json={"model": "ours", "messages": HELLO, "max_tokens": 9})

    assert counted() - before == 6
    assert (broken.status_code, broken.json()["type"]) == (502, "error")
