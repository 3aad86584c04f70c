"""KServe's URLs and names: the same client works with its gateway and without."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

import pytest
from doubles import config
from inference_doubles import InferenceClient, OperationDoubleConfig

from appliance.config.root import MetadataConfig

PUBLISHED = "publishers/shop/models"


@pytest.fixture(scope="module")
async def gateway_client() -> AsyncGenerator[InferenceClient]:
    """Two models, of which one has a slash in its name, as the service `shop/talk`."""
    configs = [OperationDoubleConfig(name=name, kind="writer") for name in ("one", "org/one")]
    metadata = MetadataConfig(namespace="shop", name="talk")
    async with InferenceClient(config(*configs, metadata=metadata)) as client:
        yield await client.wait_until_ready()
        await client.manager.stop()


@pytest.mark.parametrize("prefix", ["", "/shop/talk", f"/{PUBLISHED}/one", f"/{PUBLISHED}/org/one"])
async def test_every_route_is_below_each_url_of_the_service(gateway_client: InferenceClient, prefix: str) -> None:
    """Lists, health and inference, whatever stands before the path."""
    for path in ("/v1/models", "/openai/v1/models", "/v2/health/ready", "/metrics", "/v2/models/one", "/"):
        assert (await gateway_client.get(prefix + path)).status_code == 200
    answer = await gateway_client.post(f"{prefix}/v1/completions", json={"model": "one", "prompt": "a"})

    assert answer.json()["choices"][0]["text"] == "A"


@pytest.mark.parametrize("model", ["one", "org/one"])
@pytest.mark.parametrize("way", ["url", "header", "body"])
async def test_a_model_is_named_by_url_header_or_body(gateway_client: InferenceClient, model: str, way: str) -> None:
    """The model sees the name it has in the config, wherever the published one stood."""
    path = f"/{PUBLISHED}/{model}/v1/completions" if way == "url" else "/v1/completions"
    headers = {"X-Gateway-Model-Name": f"{PUBLISHED}/{model}"} if way == "header" else {}
    named = {"model": f"{PUBLISHED}/{model}"} if way == "body" else {}

    answer = await gateway_client.post(path, json={"prompt": "a", **named}, headers=headers)

    assert answer.status_code == 200
    assert json.loads(gateway_client.model(model).calls[-1].body) == {"prompt": "a", "model": model}


async def test_body_names_the_model_before_the_url(gateway_client: InferenceClient) -> None:
    """A gateway routes by the URL; which model is meant, the client says."""
    await gateway_client.post(f"/{PUBLISHED}/one/v1/completions", json={"prompt": "b", "model": "org/one"})

    assert json.loads(gateway_client.model("org/one").calls[-1].body)["prompt"] == "b"


async def test_a_published_name_can_be_looked_up(gateway_client: InferenceClient) -> None:
    """As the listing's names can."""
    assert (await gateway_client.get(f"/v1/models/{PUBLISHED}/org/one")).json()["id"] == "org/one"


@pytest.mark.parametrize("path", ["/shop/other", "/other/talk", "/shop/talkative", "/publishers/other/models/one"])
async def test_paths_of_another_service_are_not_found(gateway_client: InferenceClient, path: str) -> None:
    """Neither another name nor another namespace leads here."""
    assert (await gateway_client.get(f"{path}/v1/models")).status_code == 404


async def test_without_a_service_published_names_are_unknown(client: InferenceClient) -> None:
    """The header and the prefix mean something only where the config says so."""
    headers = {"X-Gateway-Model-Name": f"{PUBLISHED}/writer"}

    answer = await client.post("/v1/completions", json={"prompt": "a"}, headers=headers)

    assert answer.json()["error"]["code"] == "model_missing"
