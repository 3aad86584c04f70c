"""Batches of OpenAI's own client, answered by a real model."""

from __future__ import annotations

import json

import openai
from questions import CAPITAL
from server_process import wait_until


def test_a_batch_says_what_a_request_says(client: openai.OpenAI) -> None:
    """Files are uploaded, run and downloaded; each result is that of the request alone, and errors are apart."""
    plain = {"model": "smollm2", "messages": [{"role": "user", "content": CAPITAL}], "temperature": 0}
    chat = {**plain, "max_tokens": 12}
    # The alias has a shorter default.
    bodies = [chat, {**plain, "model": "brief"}, {**chat, "temperature": -1}]
    lines = [
        json.dumps({"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body})
        for number, body in enumerate(bodies)
    ]
    alone = client.chat.completions.create(**chat)  # type: ignore[call-overload]  # JSON

    file = client.files.create(file=("lines.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"night": "1"}
    )
    wait_until(lambda: client.batches.retrieve(batch.id).status == "completed", 60)
    batch = client.batches.retrieve(batch.id)
    assert batch.output_file_id is not None
    assert batch.error_file_id is not None
    outputs = {
        line["custom_id"]: line["response"]["body"]
        for line in map(json.loads, client.files.content(batch.output_file_id).text.splitlines())
    }
    (error,) = map(json.loads, client.files.content(batch.error_file_id).text.splitlines())

    assert outputs["0"]["choices"][0]["message"]["content"] == alone.choices[0].message.content
    assert outputs["0"]["usage"] == alone.usage.model_dump(exclude_unset=True)
    assert (outputs["1"]["model"], outputs["1"]["usage"]["completion_tokens"]) == ("brief", 2)
    assert (error["custom_id"], error["response"]["status_code"]) == ("2", 400)
    assert error["response"]["body"]["error"]["param"] == "temperature"
    assert batch.id in [each.id for each in client.batches.list(limit=10)]
    assert client.files.delete(file.id).deleted
