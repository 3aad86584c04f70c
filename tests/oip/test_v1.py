"""The first version's routes: predictions in rows and in columns, explanations, events."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from inference_doubles import InferenceClient


async def _predict(client: InferenceClient, name: str, body: object, **headers: str) -> Any:
    answer = await client.post(f"/v1/models/{name}:predict", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


@pytest.mark.parametrize(
    "body",
    [
        {"instances": ["a", "b"]},
        {"instances": [{"text_input": "a"}, {"text_input": "b"}]},
        {"inputs": ["a", "b"]},
        {"inputs": {"text_input": ["a", "b"]}},
    ],
)
async def test_texts_are_predicted_in_rows_and_in_columns(client: InferenceClient, body: object) -> None:
    """However the texts are written, there is one prediction for each."""
    assert await _predict(client, "writer", body) == ["A", "B"]


async def test_each_kind_of_model_predicts_in_its_own_way(client: InferenceClient) -> None:
    """A value or a list where there is one output, an object by the outputs' names where there are several."""
    pair = {"query": "q", "documents": ["x" * 25, "x" * 75]}

    assert await _predict(client, "embedder", {"instances": ["abc"]}) == [[3, 0.5, -1]]
    assert await _predict(client, "mood", {"instances": ["HEY"]}) == [{"label": "loud", "probabilities": [0.25, 0.75]}]
    assert await _predict(client, "ranker", {"instances": [pair, pair]}) == [[0.25, 0.75], [0.25, 0.75]]
    assert await _predict(client, "ranker", {"inputs": pair}) == [0.25, 0.75]
    assert await _predict(client, "writer", {"instances": ["a"], "parameters": {"n": 2}}) == [["A", "A"]]


async def test_parameters_are_fields_of_the_request(client: InferenceClient) -> None:
    """They are one object for all instances."""
    await _predict(client, "writer", {"instances": ["a"], "parameters": {"max_tokens": 3}})

    assert json.loads(client.model("writer").calls[-1].body)["max_tokens"] == 3


async def test_prediction_model_gets_the_body_unchanged(client: InferenceClient) -> None:
    """And so does one with explanations."""
    predicted = await client.post("/v1/models/echo:predict", json={"instances": [[1, 2], [3, 4]]})
    explained = await client.post("/v1/models/echo:explain", json={"instances": [[1, 2]]})

    assert predicted.json() == {"predictions": [3, 7]}
    assert explained.json() == {"explanations": [3]}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "not a request"),
        (b'{"instances": "a"}', "instances"),
        (b'{"instances": []}', "nothing to predict"),
        (b'{"instances": [1]}', "instances[0] is neither a text"),
        (b'{"instances": [{}]}', "instances[0] is neither a text"),
        (b'{"instances": ["a", {"query": "b"}]}', "different keys"),
        (b'{"instances": [{"query": "b"}]}', "the model takes text_input"),
        (b'{"instances": [{"text_input": []}]}', "nothing to do"),
        (b'{"inputs": 3}', "inputs is neither a text"),
        (b"{}", "neither instances nor inputs"),
        (b'{"instances": ["a"], "parameters": {"prompt": "b"}}', "prompt is no parameter"),
        (b'{"instances": ["\xff"]}', "not valid JSON"),
        (b'{"instances": ' + b"[" * 100_000, "nested too deeply"),
    ],
)
async def test_a_wrong_body_is_told_what_is_wrong(client: InferenceClient, body: bytes, says: str) -> None:
    """400, and its words."""
    answer = await client.post("/v1/models/writer:predict", content=body)

    assert answer.status_code == 400
    assert says in answer.json()["error"]


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"instances": 3}'])
async def test_prediction_model_gets_no_invalid_body(client: InferenceClient, body: bytes) -> None:
    """What every model would have to refuse, none gets to see."""
    assert (await client.post("/v1/models/echo:predict", content=body)).status_code == 400


async def test_model_object_serves_openai_and_kserve_clients(client: InferenceClient) -> None:
    """OpenAI's members, and `name` and `ready`; a listing has the names beside the objects."""
    one = (await client.get("/v1/models/writer")).json()
    all_ = (await client.get("/v1/models")).json()

    assert (one["id"], one["object"], one["name"], one["ready"]) == ("writer", "model", "writer", True)
    assert all_["models"] == [card["id"] for card in all_["data"]]


async def test_the_object_of_a_model_that_is_not_ready_is_503(fresh: InferenceClient) -> None:
    """KServe's clients read the status; the listing still has the model."""
    fresh.model("mood").is_away = True
    await fresh.wait_until(lambda: not fresh.manager.is_ready)
    mood, writer = [await fresh.get(f"/v1/models/{name}") for name in ("mood", "writer")]
    listed = {card["id"]: card["ready"] for card in (await fresh.get("/v1/models")).json()["data"]}

    assert (mood.status_code, mood.headers["retry-after"]) == (503, "5")
    assert mood.json()["error"]["code"] == "model_not_ready"
    assert writer.json()["ready"]
    assert listed["mood"] is False


EVENT = {"specversion": "1.0", "id": "1", "source": "test", "type": "question"}


async def test_binary_cloudevent_gets_a_binary_response(client: InferenceClient) -> None:
    """Attributes in headers, data in the body, both ways."""
    headers = {f"ce-{name}": value for name, value in EVENT.items()}

    answer = await client.post("/v1/models/writer:predict", json={"instances": ["a"]}, headers=headers)

    assert answer.json() == {"predictions": ["A"]}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["ce-specversion"] == "1.0"
    assert answer.headers["ce-type"] == "io.kserve.inference.response"
    assert answer.headers["ce-source"] == "io.kserve.inference.writer"
    assert answer.headers["ce-id"] not in {"", "1"}


async def test_variables_of_kserve_change_the_response_event(
    client: InferenceClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Type and source; the request's other attributes are kept if they should be."""
    headers = {f"ce-{name}": value for name, value in {**EVENT, "subject": "s", "tenant": "blue"}.items()}
    before = await client.post("/v1/models/writer:predict", json={"instances": ["a"]}, headers=headers)
    for name, value in {"CE_TYPE": "my.type", "CE_SOURCE": "my.source", "CE_MERGE": "true"}.items():
        monkeypatch.setenv(name, value)
    after = await client.post("/v1/models/writer:predict", json={"instances": ["a"]}, headers=headers)

    assert (after.headers["ce-type"], after.headers["ce-source"]) == ("my.type", "my.source")
    assert (after.headers["ce-subject"], after.headers["ce-tenant"]) == ("s", "blue")
    assert after.headers["ce-id"] != EVENT["id"]
    assert "ce-tenant" not in before.headers


@pytest.mark.parametrize(
    "data",
    [
        {"data": {"instances": ["a"]}},
        {"data_base64": base64.b64encode(b'{"instances": ["a"]}').decode()},
    ],
)
async def test_structured_cloudevent_gets_a_structured_response(client: InferenceClient, data: dict[str, Any]) -> None:
    """Attributes and data in the body, both ways."""
    headers = {"Content-Type": "application/cloudevents+json; charset=utf-8"}

    answer = await client.post("/v1/models/writer:predict", content=json.dumps({**EVENT, **data}), headers=headers)
    event = answer.json()

    assert answer.headers["content-type"] == "application/cloudevents+json"
    assert event["data"] == {"predictions": ["A"]}
    assert {"specversion", "id", "source", "type", "time", "datacontenttype"} <= set(event)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ({}, {"content-type": "application/cloudevents+json"}, 400),
        ({**EVENT, "specversion": "9"}, {"content-type": "application/cloudevents+json"}, 400),
        ({**EVENT, "data_base64": "!"}, {"content-type": "application/cloudevents+json"}, 400),
        ({**EVENT, "data_base64": 3}, {"content-type": "application/cloudevents+json"}, 400),
        (EVENT, {"content-type": "application/cloudevents+json"}, 400),
        ([], {"content-type": "application/cloudevents-batch+json"}, 415),
        ({"instances": ["a"]}, {"ce-specversion": "1.0"}, 400),
    ],
)
async def test_invalid_cloudevent_is_rejected(
    client: InferenceClient, body: object, headers: dict[str, str], status: int
) -> None:
    """With the error in the plain shape."""
    answer = await client.post("/v1/models/writer:predict", content=json.dumps(body), headers=headers)

    assert (answer.status_code, [*answer.json()]) == (status, ["error"])
