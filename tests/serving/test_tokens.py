"""The tokens of each request, as its event in the log has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from server_process import ServerProcess

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Count to ten."}], "max_tokens": 7, "ignore_eos": True}
TEXTS: dict[str, Any] = {"prompt": ["One", "Two and three"], "max_tokens": 4, "ignore_eos": True}
SEVERAL: dict[str, Any] = {"n": 3, "temperature": 0.9}


@pytest.mark.parametrize(
    ("name", "path", "body"),
    [
        ("chat", "/v1/chat/completions", CHAT),
        ("choices", "/v1/chat/completions", CHAT | SEVERAL),
        ("prompts", "/v1/completions", TEXTS),
        ("both", "/v1/completions", TEXTS | SEVERAL | {"echo": True}),
        ("stopped", "/v1/completions", TEXTS | {"stop": ["e"], "ignore_eos": False}),
    ],
)
def test_tokens_are_those_of_the_answers_usage(
    server: ServerProcess, name: str, path: str, body: Mapping[str, Any]
) -> None:
    """Several choices and several prompts of one request add up, and a prompt counts once for all its choices."""
    _, answer = server.ask(path, body, {"X-Request-Id": f"tokens-{name}"})

    event = server.request_ended(f"tokens-{name}")
    assert event["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert event["output_tokens"] == answer["usage"]["completion_tokens"]


@pytest.mark.parametrize("several", [{}, SEVERAL])
def test_a_stream_counts_what_it_sent(server: ServerProcess, several: dict[str, Any]) -> None:
    """The tokens of a stream add up, whether or not the client asked for its usage."""
    request_id = f"tokens-stream-{len(several)}"
    body = CHAT | several | {"stream": True}

    server.stream("/v1/chat/completions", body, {"X-Request-Id": request_id})

    event = server.request_ended(request_id)
    assert event["output_tokens"] == 7 * int(several.get("n", 1))
    assert event["prompt_tokens"] > 5


def test_what_makes_no_tokens_has_none(server: ServerProcess) -> None:
    """Unknown is not zero."""
    server.ask("/tokenize", {"prompt": "Hello"}, {"X-Request-Id": "tokens-none"})

    event = server.request_ended("tokens-none")
    assert event["operation"] == "tokenize"
    assert not {"prompt_tokens", "output_tokens"} & event.keys()
