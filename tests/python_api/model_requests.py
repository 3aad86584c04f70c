"""Requests to models written in Python, through their adapter."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any, cast

from appliance.core.model import Model, ModelRequest, ModelResponse, Operation
from appliance.python_api.base_model import BasePythonModel
from appliance.python_api.model_adapter import PythonModelAdapter

CHAT: Mapping[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}


async def load_model(model: BasePythonModel) -> Model:
    """Return the model's adapter, loaded."""
    adapter = PythonModelAdapter(model)
    await adapter.load({})
    return adapter


async def send(
    model: BasePythonModel, operation: Operation = Operation.CHAT_COMPLETION, /, **body: Any
) -> ModelResponse:
    """Return the response to a body; a chat says hello."""
    fields = {**(CHAT if operation is Operation.CHAT_COMPLETION else {}), **body}
    return await (await load_model(model)).handle(ModelRequest(operation, json.dumps(fields).encode()))


def response_json(reply: ModelResponse) -> Any:
    """Return the JSON of a whole response."""
    assert isinstance(reply.body, bytes)
    return json.loads(reply.body)


async def events(reply: ModelResponse) -> list[Any]:
    """Return the JSON of each event of a stream, which must end as OpenAI's do."""
    assert reply.media_type == "text/event-stream"
    pieces = [piece async for piece in cast("AsyncGenerator[bytes]", reply.body)]
    texts = b"".join(pieces).decode().split("\n\n")
    assert texts[-2:] == ["data: [DONE]", ""]
    return [json.loads(text.removeprefix("data: ")) for text in texts[:-2]]
