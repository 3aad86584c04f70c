"""LiteLLM's library: ``litellm_client.py BASE_URL MODEL`` prints what it got."""

from __future__ import annotations

import json
import sys
from typing import Any

import litellm

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def main(base_url: str, model: str) -> None:
    """Ask everything, and print."""
    messages = [{"role": "user", "content": "grüß dich 🌍"}]
    where: dict[str, Any] = {"model": f"openai/{model}", "api_base": base_url, "api_key": "sk-client", "num_retries": 0}
    # Any: LiteLLM's answers are one type or another by an argument.
    whole: Any = litellm.completion(messages=messages, **where)
    chunks: list[Any] = list(
        litellm.completion(messages=messages, stream=True, stream_options={"include_usage": True}, **where)
    )
    asked: Any = litellm.completion(messages=messages, tools=TOOLS, **where)
    tool_chunks: list[Any] = list(litellm.completion(messages=messages, tools=TOOLS, stream=True, **where))
    rebuilt: Any = litellm.stream_chunk_builder(tool_chunks)
    embedded: Any = litellm.embedding(input=["one", "three"], **where)
    try:
        litellm.completion(messages=messages, **{**where, "model": "openai/nobody"})
        error: list[Any] = []
    except litellm.exceptions.NotFoundError as caught:
        # It passes the message on, and no code.
        error = [caught.status_code, "model_not_found" if "'nobody' does not exist" in str(caught) else str(caught)]
    call, streamed_call = (each.choices[0].message.tool_calls[0].function for each in (asked, rebuilt))
    got = {
        "whole": whole.choices[0].message.content,
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
        "usage": next(chunk.usage.total_tokens for chunk in reversed(chunks) if getattr(chunk, "usage", None)),
        "tool": [call.name, json.loads(call.arguments)],
        "streamed_tool": [streamed_call.name, json.loads(streamed_call.arguments)],
        "embeddings": [each["embedding"] for each in embedded.data],
        "error": error,
        "models": sorted({whole.model, *(chunk.model for chunk in chunks)}),
    }
    sys.stdout.write(json.dumps(got))


if __name__ == "__main__":
    main(*sys.argv[1:])
