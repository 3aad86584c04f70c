"""
A model that thinks aloud: the reasoning parser of the config splits what it thinks from what it says.
"""

from __future__ import annotations

from collections.abc import Callable

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from served import Served

THOUGHT = "Here is my thought process: Easy. Here is my response: {}."


def _conversation() -> list[ChatCompletionMessageParam]:
    """
    Two answers in Granite's form, which SmolLM2 then keeps to.
    """
    return [
        {"role": "user", "content": "Capital of Italy?"},
        {"role": "assistant", "content": THOUGHT.format("Rome")},
        {"role": "user", "content": "Capital of Spain?"},
        {"role": "assistant", "content": THOUGHT.format("Madrid")},
        {"role": "user", "content": "Capital of France?"},
    ]


@pytest.mark.slow
def test_reasoning_comes_apart_from_the_answer(serve: Callable[..., Served]) -> None:
    """
    Whole and streamed, the thought is in `reasoning` and only the answer is in `content`.
    """
    server = serve("models.smollm2.reasoning_parser=granite").until_ready()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120) as client:
        whole = client.chat.completions.create(model="smollm2", messages=_conversation(), temperature=0, max_tokens=40)
        stream = client.chat.completions.create(
            model="smollm2", messages=_conversation(), temperature=0, max_tokens=40, stream=True
        )
        deltas = [chunk.choices[0].delta.model_dump() for chunk in stream if chunk.choices]
    message = whole.choices[0].message.model_dump()

    assert message["reasoning"].strip() == "Easy."
    assert message["content"].strip() == "Paris."
    assert "".join(delta.get("reasoning") or "" for delta in deltas).strip() == "Easy."
    assert "".join(delta.get("content") or "" for delta in deltas).strip() == "Paris."
