"""
OpenAI's client for Python, of whatever version is installed: ``openai_client.py BASE_URL MODEL`` prints what it got.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import openai

TOOLS: Any = [  # Any: the type's name is not the same in every version
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def _stream(client: openai.OpenAI, model: str, messages: Any) -> tuple[str, int | None, set[str]]:
    text, usage, models = "", None, set()
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    for chunk in client.chat.completions.create(model=model, messages=messages, **options):
        models.add(chunk.model)
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        usage = chunk.usage.total_tokens if chunk.usage else usage
    return text, usage, models


def _streamed_tool(client: openai.OpenAI, model: str, messages: Any) -> list[Any]:
    name, arguments = "", ""
    for chunk in client.chat.completions.create(model=model, messages=messages, tools=TOOLS, stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            assert call.function is not None
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    return [name, json.loads(arguments)]


def _error(client: openai.OpenAI, messages: Any) -> list[Any]:
    try:
        client.chat.completions.create(model="nobody", messages=messages)
    except openai.APIStatusError as error:
        return [error.status_code, error.code]
    return []


def main(base_url: str, model: str) -> None:
    """Ask everything, and print."""
    messages: Any = [{"role": "user", "content": "grüß dich 🌍"}]
    with openai.OpenAI(base_url=base_url, api_key="sk-client", max_retries=0) as client:
        whole = client.chat.completions.create(model=model, messages=messages)
        streamed, usage, models = _stream(client, model, messages)
        asked: Any = client.chat.completions.create(model=model, messages=messages, tools=TOOLS)
        call = asked.choices[0].message.tool_calls[0].function
        embedded = client.embeddings.create(model=model, input=["one", "three"])
        got = {
            "whole": whole.choices[0].message.content,
            "streamed": streamed,
            "usage": usage,
            "tool": [call.name, json.loads(call.arguments)],
            "streamed_tool": _streamed_tool(client, model, messages),
            "embeddings": [each.embedding for each in embedded.data],
            "error": _error(client, messages),
            "models": sorted({whole.model, *models}),
        }
    sys.stdout.write(json.dumps(got))


if __name__ == "__main__":
    main(*sys.argv[1:])
