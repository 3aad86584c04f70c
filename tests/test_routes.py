"""Routes and probes over doubles: what goes over the wire before any engine exists."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest
from doubles import Double, DoubleConfig, DoubleFactory, config
from httpx import ASGITransport, AsyncClient

from appliance.core.errors import EngineDeadError
from appliance.models.manager import ModelManager
from appliance.server import create_app


class Client(AsyncClient):
    """Talks to an application of two doubles that still load, in this event loop."""

    def __init__(self) -> None:
        app = create_app(
            config(DoubleConfig(name="one", aliases=("org/uno",)), DoubleConfig(name="two")), factory=DoubleFactory()
        )
        self.manager: ModelManager = app.state.manager
        super().__init__(transport=ASGITransport(cast("Any", app)), base_url="http://appliance")


@pytest.fixture
async def client() -> AsyncGenerator[Client]:
    """The client, and the load begun."""
    async with Client() as client:
        client.manager.start()
        yield client
        await client.manager.stop()


def _doubles(client: Client) -> list[Double]:
    return [cast("Double", entry.model) for entry in client.manager.statuses]


async def _make_ready(client: Client) -> None:
    for double in _doubles(client):
        double.may_load.set()
    async with asyncio.timeout(10):
        while not client.manager.is_ready:
            await asyncio.sleep(0.01)


async def test_probes_list_each_model_with_its_reason(client: Client) -> None:
    """While models load: live, not ready, not started, and why."""
    live, ready, started = [await client.get(path) for path in ("/livez", "/readyz", "/startupz")]

    assert (live.status_code, ready.status_code, started.status_code) == (200, 503, 503)
    assert ready.headers["retry-after"]
    assert [model["name"] for model in ready.json()["models"]] == ["one", "two"]
    assert all(set(model) >= {"state", "since", "reason"} for model in ready.json()["models"])


async def test_probes_agree_once_models_are_ready(client: Client) -> None:
    """Every probe, under every name and method a platform may use, says yes."""
    await _make_ready(client)

    for path in ("/livez", "/readyz", "/startupz", "/health", "/ping"):
        assert (await client.get(path)).status_code == 200
        assert (await client.head(path)).status_code == 200


async def test_response_while_loading_has_retry_after(client: Client) -> None:
    """503 in OpenAI's shape with `Retry-After`."""
    answer = await client.post("/v1/completions", json={"model": "one"})

    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["code"] == "model_not_ready"
    assert answer.json()["error"]["type"] == "service_unavailable_error"


async def test_models_are_listed_with_all_their_names(client: Client) -> None:
    """OpenAI's listing holds every name, and a name with a slash can be looked up."""
    listed = (await client.get("/v1/models")).json()
    await _make_ready(client)
    one = (await client.get("/openai/v1/models/org/uno")).json()
    missing = await client.get("/v1/models/three")

    assert [model["id"] for model in listed["data"]] == ["one", "org/uno", "two"]
    assert (one["id"], one["root"], one["ready"], one["max_model_len"]) == ("org/uno", "one", True, 8)
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


async def test_the_body_reaches_the_model_as_it_came(client: Client) -> None:
    """Nothing is decoded and encoded again on the way."""
    await _make_ready(client)
    body = b'{ "model":"one",\n "prompt" : "\\u00e9" }'

    answer = await client.post("/v1/completions", content=body)

    assert answer.content == body


async def test_a_model_must_be_named_where_there_are_two(client: Client) -> None:
    """400 that names the choices."""
    answer = await client.post("/v1/completions", json={})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "model"
    assert "one, org/uno, two" in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"{", b'{"model": 3}', b'{"model": "\xff"}', b"[" * 100_000])
async def test_invalid_body_is_rejected(client: Client, body: bytes) -> None:
    """400, whatever is wrong with it."""
    assert (await client.post("/v1/completions", content=body)).status_code == 400


@pytest.mark.parametrize(
    ("fault", "status"), [(RuntimeError("secret detail"), 500), (EngineDeadError("the engine died"), 503)]
)
async def test_server_errors_hide_internals(client: Client, fault: Exception, status: int) -> None:
    """An unforeseen exception is 500 without its text; a dead engine is 503."""
    await _make_ready(client)
    _doubles(client)[0].answer_fault = fault

    answer = await client.post("/v1/completions", json={"model": "one"})

    assert answer.status_code == status
    assert "secret detail" not in answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_anthropic_error_has_its_type(client: Client) -> None:
    """Under the messages path the error object has its type beside it."""
    answer = await client.post("/v1/messages", json={"model": "one"})

    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["message"]


async def test_the_index_lists_the_routes(client: Client) -> None:
    """A person who opens the root sees where to go."""
    body: dict[str, Any] = (await client.get("/")).json()

    assert {"/v1/chat/completions", "/openai/v1/models", "/readyz", "/metrics"} <= set(body["routes"])


async def test_metrics_have_the_state_of_each_model(client: Client) -> None:
    """One series for each model and state."""
    response = await client.get("/metrics")
    text = response.text

    assert response.headers["content-type"].count("charset") == 1
    assert 'appliance_model_state{model="one",state="ready"} 0.0' in text
    assert 'appliance_requests_running{model="two"} 0.0' in text
    assert 'appliance_requests_queued{model="two"} 0.0' in text


async def test_metrics_have_the_duration_of_each_load_phase(client: Client) -> None:
    """The phase under way too, so that one that hangs shows; a model that is ready has no further phase."""
    loading = (await client.get("/metrics")).text
    await _make_ready(client)
    ready = (await client.get("/metrics")).text

    assert 'appliance_load_phase_seconds{model="one",phase="loading"}' in loading
    assert 'appliance_load_phase_seconds{model="one",phase="proving"}' in ready
    assert 'phase="ready"' not in ready


async def test_error_in_a_stream_is_its_last_event(client: Client) -> None:
    """The status is sent already, so the error comes as an event in OpenAI's shape, and the stream ends."""
    await _make_ready(client)
    double = _doubles(client)[0]
    double.stream_fault = EngineDeadError("the engine died: it was told to")
    double.may_finish.set()

    response = await client.post("/v1/completions", json={"model": "one", "stream": True})
    first, last = response.text.strip().split("\n\n")

    assert response.status_code == 200
    assert first == "data: 1"
    assert json.loads(last.removeprefix("data: "))["error"]["message"].startswith("The model failed on this request")
