"""Our own model behind a proxy: a second appliance, and nobody can tell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from questions import CAPITAL, COUNT, MESSAGES, TALK
from server_process import ServerProcess

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CONVERSATION: dict[str, Any] = {"messages": TALK, "temperature": 0, "max_tokens": 6}

# What is another one at each request.
_FLEETING = re.compile(r'"(id|created|created_at|completed_at|item_id|request_id)":("[^"]*"|[\d.]+)')


@pytest.fixture(scope="module")
def proxy(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The proxy, which names its upstream's model as it is named there."""
    folder = tmp_path_factory.mktemp("proxy")
    file = folder / "proxy.yaml"
    file.write_text(f"models: [{{name: smollm2, class: proxy, upstreams: [{{url: {server.url}}}]}}]\n")
    served = ServerProcess(file, folder / "log").wait_until_ready(30)
    yield served
    assert served.stop() == 0, served.log_tail()


def _ask(served: ServerProcess, path: str, body: object) -> tuple[int, str, str]:
    """Status, content type and body without what is fleeting."""
    response = httpx.post(served.url + path, json=body, timeout=120)
    return response.status_code, response.headers["content-type"], _FLEETING.sub(r'"\1":0', response.text)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CONVERSATION | {"logprobs": True, "top_logprobs": 1}),
        ("/v1/chat/completions", CONVERSATION | {"stream": True, "stream_options": {"include_usage": True}}),
        ("/v1/chat/completions", CONVERSATION | {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 12}),
        ("/v1/completions", {"prompt": COUNT, "temperature": 0, "max_tokens": 3, "n": 2, "stop_token_ids": [0]}),
        ("/v1/responses", {"input": CAPITAL, "temperature": 0, "max_output_tokens": 3}),
        ("/tokenize", {"prompt": "Grüße"}),
        ("/v1/chat/completions", {"messages": "wrong"}),
        ("/v1/chat/completions", CONVERSATION | {"max_tokens": 100_000}),
        ("/v1/completions", {"prompt": 3}),
    ],
)
def test_an_answer_through_the_proxy_is_the_answer(
    server: ServerProcess, proxy: ServerProcess, path: str, body: Any
) -> None:
    """Whole or streamed, good or an error: status, type and every byte that is not fleeting."""
    body = {"model": "smollm2"} | body

    assert _ask(proxy, path, body) == _ask(server, path, body)


def test_openais_client_streams_through_it(proxy: ServerProcess) -> None:
    """Chunk by chunk, all under the name it asked for."""
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="none", timeout=120) as client:
        chunks = list(
            client.chat.completions.create(model="smollm2", messages=MESSAGES, temperature=0, stream=True, max_tokens=9)
        )

    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert {chunk.model for chunk in chunks} == {"smollm2"}


def test_anthropics_client_streams_through_it(proxy: ServerProcess) -> None:
    """Messages keep the names of their events."""
    with (
        anthropic.Anthropic(base_url=proxy.url, api_key="none", timeout=120) as client,
        client.messages.stream(
            model="smollm2", max_tokens=12, messages=[{"role": "user", "content": CAPITAL}]
        ) as stream,
    ):
        text, message = "".join(stream.text_stream), stream.get_final_message()

    assert text
    assert message.model == "smollm2"


def test_it_is_ready_as_its_upstream_is(proxy: ServerProcess) -> None:
    """It shows the other appliance."""
    status, body = proxy.get("/readyz")

    assert (status, body["models"][0]["upstreams"][0]["available"]) == (200, True)
    assert body["models"][0]["upstreams"][0]["reason"] == "the health check succeeded"
