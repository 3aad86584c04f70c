"""Models written in Python behind their bridge, asked at the contract."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any, cast

from appliance.core.model import Model, ModelRequest, ModelResponse, Operation
from appliance.python_api.base_model import BasePythonModel
from appliance.python_api.model_adapter import adapt

CHAT: Mapping[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}


async def loaded(model: BasePythonModel) -> Model:
    """The model behind its bridge, ready."""
    bridge = adapt(model)
    await bridge.load({})
    return bridge


async def ask(
    model: BasePythonModel, operation: Operation = Operation.CHAT_COMPLETION, /, **body: Any
) -> ModelResponse:
    """The reply to a body; a chat says hello."""
    said = {**(CHAT if operation is Operation.CHAT_COMPLETION else {}), **body}
    return await (await loaded(model)).handle(ModelRequest(operation, json.dumps(said).encode()))


def whole(reply: ModelResponse) -> Any:
    """The JSON of a whole answer."""
    assert isinstance(reply.body, bytes)
    return json.loads(reply.body)


async def events(reply: ModelResponse) -> list[Any]:
    """The JSON of each event of a stream, which must end as OpenAI's do."""
    assert reply.media_type == "text/event-stream"
    pieces = [piece async for piece in cast("AsyncGenerator[bytes]", reply.body)]
    texts = b"".join(pieces).decode().split("\n\n")
    assert texts[-2:] == ["data: [DONE]", ""]
    return [json.loads(text.removeprefix("data: ")) for text in texts[:-2]]
