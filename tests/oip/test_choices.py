"""What a request without inputs is told of those there are."""

from __future__ import annotations

import pytest
from auth_doubles import bearer_header
from inference_doubles import InferenceClient, operation_doubles

from appliance.config.server import KeyConfig, ServerConfig
from appliance.core.model import Operation

CHAT, LOOK = "chat-chat-chat-chat-chat", "look-look-look-look-look"
KEYS = (
    KeyConfig(name="chat", value=CHAT, operations=(Operation.CHAT_COMPLETION,)),
    KeyConfig(name="look", value=LOOK, operations=()),
)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/models/everything/infer", {"inputs": []}),
        ("/v1/models/everything:predict", {"instances": [{"query": "b"}]}),
    ],
)
async def test_error_for_missing_inputs_names_what_the_key_allows(path: str, body: object) -> None:
    """Each pair of inputs and outputs once, and none of an operation that the key is not for."""
    async with InferenceClient(operation_doubles("everything", server=ServerConfig(api_keys=KEYS))) as client:
        await client.wait_until_ready()
        chat = await client.post(path, json=body, headers=bearer_header(CHAT))
        look = await client.post(path, json=body, headers=bearer_header(LOOK))
        generated = await client.post(
            "/v2/models/everything/generate", json={"text_input": "a"}, headers=bearer_header(CHAT)
        )
        await client.manager.stop()

    assert chat.status_code == 400
    assert chat.json()["error"].endswith("; the model takes text_input for text_output")
    assert look.status_code == 403
    assert generated.status_code == 200
