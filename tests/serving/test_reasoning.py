"""A model that thinks aloud: the reasoning parser of the config splits what it thinks from what it says."""

from __future__ import annotations

from collections.abc import Callable

import openai
import pytest
from questions import REASONED
from server_process import ServerProcess


@pytest.mark.slow
def test_reasoning_comes_apart_from_the_answer(serve: Callable[..., ServerProcess]) -> None:
    """Whole and streamed, the thought is in `reasoning` and only the answer is in `content`."""
    server = serve("models.smollm2.reasoning_parser=granite").wait_until_ready()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120) as client:
        whole = client.chat.completions.create(model="smollm2", messages=REASONED, temperature=0, max_tokens=40)
        stream = client.chat.completions.create(
            model="smollm2", messages=REASONED, temperature=0, max_tokens=40, stream=True
        )
        deltas = [chunk.choices[0].delta.model_dump() for chunk in stream if chunk.choices]
    message = whole.choices[0].message.model_dump()

    assert message["reasoning"].strip() == "Easy."
    assert message["content"].strip() == "Paris."
    assert "".join(delta.get("reasoning") or "" for delta in deltas).strip() == "Easy."
    assert "".join(delta.get("content") or "" for delta in deltas).strip() == "Paris."
