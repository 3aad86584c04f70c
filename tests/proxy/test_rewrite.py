"""What the section `request` asks for, and nothing else, is changed in a body."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.config.upstreams import RequestRewriteConfig
from appliance.core.model import Operation
from appliance.proxy.rewrite import Rewrite

CHAT, MESSAGE, RESPONSE = Operation.CHAT_COMPLETION, Operation.MESSAGE, Operation.RESPONSE


def test_nothing_asked_for_is_nothing_changed() -> None:
    """The very same bytes."""
    body = b'{ "messages": [ ],"seed":1.0}'

    assert Rewrite(RequestRewriteConfig())(CHAT, body) is body


def test_defaults_overrides_and_drops() -> None:
    """What the client sends beats a default and not an override; what is dropped can be set again."""
    config = RequestRewriteConfig(
        defaults={"temperature": 0.5, "top_p": 1, "stream_options": {"include_usage": True}},
        override={"user": "us", "chat_template_kwargs": {"enable_thinking": False}},
        drop=("user", "logit_bias"),
    )
    body = (
        b'{"temperature": 0.10, "user": "them", "logit_bias": {}, "stream_options": {"include_usage": false}, '
        b'"chat_template_kwargs": {"a": 1}, "unknown": null}'
    )

    made = Rewrite(config)(CHAT, body)

    assert json.loads(made) == {
        "temperature": 0.1,
        "stream_options": {"include_usage": False},
        "chat_template_kwargs": {"a": 1, "enable_thinking": False},
        "unknown": None,
        "top_p": 1,
        "user": "us",
    }
    assert b"0.10" in made


@pytest.mark.parametrize(
    ("operation", "before", "after"),
    [
        (CHAT, {"messages": []}, {"messages": [{"role": "system", "content": "P"}]}),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "u"}]},
            {"messages": [{"role": "system", "content": "P"}, {"role": "user", "content": "u"}]},
        ),
        (
            CHAT,
            {"messages": [{"content": "own\n", "role": "developer"}, {"role": "user", "content": "u"}]},
            {"messages": [{"content": "P\n\nown\n", "role": "developer"}, {"role": "user", "content": "u"}]},
        ),
        (
            CHAT,
            {"messages": [{"role": "system", "content": [{"type": "text", "text": "own"}]}]},
            {
                "messages": [
                    {"role": "system", "content": [{"type": "text", "text": "P"}, {"type": "text", "text": "own"}]}
                ]
            },
        ),
        (Operation.TOKENIZE, {"prompt": "p"}, {"prompt": "p"}),
        (CHAT, {"messages": "wrong"}, {"messages": "wrong"}),
        (CHAT, {"messages": ["wrong"]}, {"messages": [{"role": "system", "content": "P"}, "wrong"]}),
        (MESSAGE, {"messages": []}, {"messages": [], "system": "P"}),
        (MESSAGE, {"system": "own"}, {"system": "P\n\nown"}),
        (MESSAGE, {"system": []}, {"system": [{"type": "text", "text": "P"}]}),
        (RESPONSE, {"input": "i", "instructions": None}, {"input": "i", "instructions": "P"}),
        (Operation.EMBEDDING, {"input": "i"}, {"input": "i"}),
    ],
)
def test_a_system_prompt_goes_before_the_clients_own(operation: Operation, before: Any, after: Any) -> None:
    """Where each protocol keeps it, in one message where there is one; what is wrong is left to the upstream."""
    rewrite = Rewrite(RequestRewriteConfig(system_prompt="P"))

    assert json.loads(rewrite(operation, json.dumps(before).encode())) == after


def test_other_messages_keep_their_bytes() -> None:
    """Only the system prompt is written."""
    body = b'{"messages": [ {"role":"system","content":"a\\u00e9"} , {"role": "user", "content": "\\u00e9", "n": 1.0}]}'

    made = Rewrite(RequestRewriteConfig(system_prompt="P"))(CHAT, body)

    assert made == body.replace(b'"a\\u00e9"', b'"P\\n\\na\\u00e9"')
