"""Requests that are a lot of work, on a real engine."""

from __future__ import annotations

from typing import Any

import pytest
from server_process import ServerProcess

pytestmark = pytest.mark.slow

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Count to ten."}], "max_tokens": 3}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", CHAT | {"n": 16384}, "n"),
        ("/v1/chat/completions", CHAT | {"n": 129, "stream": True}, "n"),
        ("/v1/completions", {"prompt": "One", "n": 129}, "n"),
        ("/v1/completions", {"prompt": ["One"] * 5000, "max_tokens": 1}, "prompt"),
    ],
)
def test_more_than_a_request_may_ask_for_is_400(
    server: ServerProcess, path: str, body: dict[str, Any], param: str
) -> None:
    """OpenAI's own bounds, unless the file has others."""
    status, answer = server.post(path, {"model": "smollm2", **body})

    assert (status, answer["error"]["param"]) == (400, param)
    assert "_per_request" in answer["error"]["message"]


def test_all_choices_of_all_prompts_are_computed_in_turns(server: ServerProcess) -> None:
    """More than there are places for, in the order of their prompts."""
    body = {"prompt": ["One", "Two", "Three"], "n": 50, "max_tokens": 1, "top_k": 1}

    status, answer = server.ask("/v1/completions", {"model": "smollm2", **body}, {"X-Request-Id": "size-choices"})

    texts = [choice["text"] for choice in answer["choices"]]
    assert (status, [choice["index"] for choice in answer["choices"]]) == (200, list(range(150)))
    assert [len(set(texts[begin : begin + 50])) for begin in (0, 50, 100)] == [1, 1, 1]
    assert server.request_ended("size-choices")["sequences"] == 150


def test_choices_have_the_seeds_of_their_own(server: ServerProcess) -> None:
    """The choices of a seed are what each of the seeds after it gives alone."""
    body = {"model": "smollm2", "prompt": "Once upon a time", "max_tokens": 8, "temperature": 1.5}

    _, together = server.post("/v1/completions", body | {"n": 3, "seed": 5})
    alone = [server.post("/v1/completions", body | {"seed": 5 + index})[1] for index in range(3)]

    assert [each["text"] for each in together["choices"]] == [each["choices"][0]["text"] for each in alone]
    assert len({each["text"] for each in together["choices"]}) > 1
