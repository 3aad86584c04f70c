"""One text to one text, whole and as it comes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from inference_doubles import InferenceClient

from appliance.core.errors import EngineDeadError, RequestError


def _events(text: str) -> list[dict[str, Any]]:
    return [json.loads(event.removeprefix("data: ")) for event in text.strip().split("\n\n")]


async def test_generate_returns_the_whole_text(client: InferenceClient) -> None:
    """Parameters stand in their own object, or beside the text as clients of Triton have them."""
    body = {"id": "7", "text_input": "a b", "parameters": {"max_tokens": 3}, "temperature": 0, "stream": False}

    answer = await client.post("/v2/models/writer/generate", json=body)
    sent = json.loads(client.model("writer").calls[-1].body)

    assert answer.json() == {"model_name": "writer", "model_version": "1", "id": "7", "text_output": "A B"}
    assert sent == {"model": "writer", "prompt": "a b", "max_tokens": 3, "temperature": 0}


@pytest.mark.parametrize("name", ["writer", "talker"])
async def test_generate_stream_sends_each_new_part(client: InferenceClient, name: str) -> None:
    """Each event has what is new, wherever the model's own events were cut; be they of a completion or of a chat."""
    answer = await client.post(f"/v2/models/{name}/generate_stream", json={"text_input": "a é c"})

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [event["text_output"] for event in _events(answer.text)] == ["A", "É", "C"]
    assert _events(answer.text)[0]["model_name"] == name


async def test_error_in_a_stream_is_the_last_event(fresh: InferenceClient) -> None:
    """The status is sent already; the event has the protocol's shape of errors."""
    fresh.model("writer").stream_fault = EngineDeadError("the engine died")

    answer = await fresh.post("/v2/models/writer/generate_stream", json={"text_input": "a"})

    why = f"the log says why, under the request id {answer.headers['x-request-id']}."
    assert _events(answer.text)[-1] == {"error": f"The model failed on this request; {why}"}


async def test_error_before_the_first_event_has_its_status(fresh: InferenceClient) -> None:
    """Nothing has been sent yet, so the refusal is a plain one."""
    fresh.model("writer").answer_fault = RequestError("too long")

    answer = await fresh.post("/v2/models/writer/generate_stream", json={"text_input": "a"})

    assert (answer.status_code, answer.json()) == (400, {"error": "too long"})


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"text_input": 3}',
        b'{"text_input": "a", "parameters": []}',
        b'{"text_input": "a", "model": 1}',
    ],
)
@pytest.mark.parametrize("verb", ["generate", "generate_stream"])
async def test_a_wrong_body_is_refused(client: InferenceClient, verb: str, body: bytes) -> None:
    """400 in the protocol's shape."""
    answer = await client.post(f"/v2/models/writer/{verb}", content=body)

    assert (answer.status_code, [*answer.json()]) == (400, ["error"])
