"""Messages and responses of a real engine: its own, and those that a proxy makes of its chat completions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from questions import TALK
from server_process import ServerProcess

MODEL = "smollm2"
SYSTEM: Any = TALK[0]["content"]
QUESTION: Any = [{**TALK[1], "content": TALK[1]["content"][0]["text"]}, *TALK[2:]]  # type: ignore[index]  # a list of parts


@pytest.fixture(scope="module")
def proxy(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A proxy to the engine as if it had chat completions alone."""
    folder: Path = tmp_path_factory.mktemp("over-chat")
    file = folder / "proxy.yaml"
    upstream = f"{{url: '{server.url}', translate: [messages, responses]}}"
    file.write_text(f"models: [{{name: {MODEL}, class: proxy, upstreams: [{upstream}]}}]\n")
    served = ServerProcess(file, folder / "log").wait_until_ready(30)
    yield served
    assert served.stop() == 0, served.log_tail()


def _message(server: ServerProcess) -> tuple[object, ...]:
    with anthropic.Anthropic(base_url=server.url, api_key="k", max_retries=0) as client:
        asked: dict[str, Any] = {"model": MODEL, "system": SYSTEM, "messages": QUESTION}
        count = client.messages.count_tokens(**asked).input_tokens
        # The client has no parameter for it any more.
        asked |= {"max_tokens": 12, "extra_body": {"temperature": 0}}
        whole = client.messages.create(**asked)
        with client.messages.stream(**asked) as events:
            text, streamed = "".join(events.text_stream), events.get_final_message()
    (block,) = [block for block in whole.content if block.type == "text"]
    assert (text, streamed.usage.output_tokens) == (block.text, whole.usage.output_tokens)
    return block.text, whole.stop_reason, whole.model, whole.usage.output_tokens, count


def _response(server: ServerProcess) -> tuple[object, ...]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
        asked: dict[str, Any] = {"model": MODEL, "input": QUESTION, "instructions": SYSTEM}
        asked |= {"max_output_tokens": 12, "temperature": 0}
        whole = client.responses.create(**asked)
        with client.responses.stream(**asked) as events:
            deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
            streamed = events.get_final_response()
    assert whole.usage is not None
    assert ("".join(deltas), streamed.output_text) == (whole.output_text, whole.output_text)
    return whole.output_text, whole.status, whole.model, whole.usage.input_tokens, whole.usage.output_tokens


def test_a_translated_message_is_what_the_engine_answers_itself(server: ServerProcess, proxy: ServerProcess) -> None:
    """Whole and streamed: the text, why it ended, the tokens, and the count of tokens."""
    assert _message(proxy) == _message(server)


def test_a_translated_response_is_what_the_engine_answers_itself(server: ServerProcess, proxy: ServerProcess) -> None:
    """Whole and streamed."""
    assert _response(proxy) == _response(server)
