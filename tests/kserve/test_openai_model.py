"""A model of OpenAI's clients that was written for KServe."""

from __future__ import annotations

import sys
from collections.abc import Callable

from openai import OpenAI
from reference_servers import Reference


def test_it_completes_and_chats(start: Callable[..., Reference]) -> None:
    """Below KServe's prefix, which needs no vLLM here."""
    server = start(sys.executable, "openai_model.py", "appliance.kserve")
    client = OpenAI(base_url=f"{server.url}/openai/v1", api_key="none", max_retries=0, timeout=10)
    completion = client.completions.create(model="model", prompt="Hello")
    chat = client.chat.completions.create(model="model", messages=[{"role": "user", "content": "Hi"}])

    assert (completion.choices[0].text, completion.id) == ("Hello", "1")
    assert chat.choices[0].message.content == "Hi"
    assert chat.usage is not None
    assert chat.usage.total_tokens == 3
