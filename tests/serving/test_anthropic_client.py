"""What Anthropic's own client gets from a real model."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import pytest
from questions import CAPITAL
from server_process import ServerProcess

QUESTION: anthropic.types.MessageParam = {"role": "user", "content": CAPITAL}


@pytest.fixture
def claude(server: ServerProcess) -> Iterator[anthropic.Anthropic]:
    """Anthropic's own client."""
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=120) as client:
        yield client


def test_a_message_gets_an_answer_that_makes_sense(claude: anthropic.Anthropic) -> None:
    """The Messages API answers with the model's text."""
    answer = claude.messages.create(model="smollm2", max_tokens=32, messages=[QUESTION], extra_body={"temperature": 0})

    assert isinstance(answer.content[0], anthropic.types.TextBlock)
    assert "Paris" in answer.content[0].text


def test_a_message_streams(claude: anthropic.Anthropic) -> None:
    """The client understands every event of the stream."""
    with claude.messages.stream(
        model="smollm2", max_tokens=32, messages=[QUESTION], extra_body={"temperature": 0}
    ) as stream:
        text = "".join(stream.text_stream)

    assert "Paris" in text


def test_tokens_are_counted_without_an_answer(claude: anthropic.Anthropic) -> None:
    """`count_tokens` counts what the chat template makes of the messages."""
    counted = claude.messages.count_tokens(model="smollm2", messages=[QUESTION])

    assert counted.input_tokens > 7


def test_an_error_is_one_the_client_knows(claude: anthropic.Anthropic) -> None:
    """An unknown model raises the client's own not-found error."""
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.messages.create(model="nope", max_tokens=8, messages=[QUESTION])

    assert "smollm2" in str(caught.value)
