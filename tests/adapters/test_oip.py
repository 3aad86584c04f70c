"""The Open Inference Protocol as real servers answer it, and as broken ones do."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from services import output, tensors
from upstreams import Answer, Upstream, json_answer

from appliance.adapters.oip import OipClient
from appliance.adapters.service_client import ServiceClient
from appliance.config.adapters import OipConfig
from appliance.config.upstreams import UpstreamConfig
from appliance.core.errors import GatewayError
from appliance.proxy.client import UpstreamClient

V2 = "/v2/models/m/infer"
V1 = "/v1/models/m:predict"


@pytest.fixture
async def service(upstream: Upstream) -> AsyncGenerator[ServiceClient]:
    """The way to the scripted server."""
    service = ServiceClient(UpstreamClient(UpstreamConfig(url=upstream.origin)))
    yield service
    await service.close()


async def _infer(service: ServiceClient, version: str, texts: list[str], name: str | None = None) -> list[Any]:
    config = OipConfig.model_validate({"kind": "oip", "version": version, "embeddings": {}})
    return await OipClient(config, service, "m").infer({"text": texts}, name, {}, {})


@pytest.mark.parametrize(
    ("answer", "rows"),
    [
        (tensors(output("a", "FP32", [2, 2], [1.0, 2.0, 3.0, 4.0])), [[1.0, 2.0], [3.0, 4.0]]),
        (tensors(output("a", "FP32", [2, 2], [[1.0, 2.0], [3.0, 4.0]])), [[1.0, 2.0], [3.0, 4.0]]),
        (tensors(output("a", "FP64", [2, 1, 2], [[[1.5, 2.0]], [[3.0, 4.0]]])), [[1.5, 2.0], [3.0, 4.0]]),
        (tensors(output("a", "BYTES", [2], ["x", "y"])), ["x", "y"]),
        (tensors(output("a", "BYTES", [2, 1], [["x"], ["y"]])), ["x", "y"]),
        (tensors(output("b", "INT64", [1], [7]), output("a", "FP32", [2], [1.0, 2.0])), [1.0, 2.0]),
    ],
    ids=["flat", "nested", "deep", "texts", "column", "several"],
)
async def test_a_tensor_is_read_along_its_first_dimension(
    service: ServiceClient, upstream: Upstream, answer: Answer, rows: list[Any]
) -> None:
    """Whether its data is nested, which the protocol allows, or in one list."""
    upstream.on(V2, answer)

    assert await _infer(service, "v2", ["one", "two"], "a") == rows


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({}, "has no outputs"),
        ([], "has no outputs"),
        ({"outputs": []}, "outputs are none, and not one alone"),
        ({"outputs": [output("a", "FP32", [2], [1]), output("b", "FP32", [2], [1])]}, "are a, b, and not one alone"),
        ({"outputs": [output("a", "FP32", [2, 3], [1.0])]}, r"a has the shape \[2, 3\] for 1 values"),
        ({"outputs": [output("a", "FP32", [-1], [1.0])]}, "has the shape"),
        ({"outputs": [{"name": "a", "shape": "2", "data": [1.0, 2.0]}]}, "has the shape"),
        ({"outputs": [{"name": "a", "shape": [2]}]}, "has no data"),
        ({"outputs": [output("a", "FP32", [3], [1.0, 2.0, 3.0])]}, "gave 3 items for 2 texts"),
        ({"outputs": [output("a", "FP32", [2, 0], [])]}, "gave 0 items for 2 texts"),
    ],
)
async def test_an_invalid_tensor_is_a_gateway_error(
    service: ServiceClient, upstream: Upstream, answer: object, message: str
) -> None:
    """502 with what is wrong with it; never an answer made of half of it."""
    upstream.on(V2, json_answer(answer))

    with pytest.raises(GatewayError, match=message):
        await _infer(service, "v2", ["one", "two"])


@pytest.mark.parametrize(
    ("answer", "name", "rows"),
    [
        ({"predictions": ["x", "y"]}, None, ["x", "y"]),
        ({"predictions": [[1.0], [2.0]]}, None, [[1.0], [2.0]]),
        ({"predictions": [{"only": 1}, {"only": 2}]}, None, [1, 2]),
        ({"predictions": [{"a": 1, "b": 3}, {"a": 2, "b": 4}]}, "b", [3, 4]),
    ],
)
async def test_predictions_are_read(
    service: ServiceClient, upstream: Upstream, answer: object, name: str | None, rows: list[Any]
) -> None:
    """Plain, or by name."""
    upstream.on(V1, json_answer(answer))

    assert await _infer(service, "v1", ["one", "two"], name) == rows
    # Servers that match paths as they are written know no escaped colon.
    assert [asked.raw_path for asked in upstream.asked] == [V1]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"error": "no model"}, "no model"),
        ({"outputs": []}, "has no predictions"),
        ({"predictions": [{"a": 1, "b": 2}] * 2}, "have a, b, and no only one"),
        ({"predictions": [1]}, "gave 1 items for 2 texts"),
    ],
)
async def test_invalid_predictions_are_a_gateway_error(
    service: ServiceClient, upstream: Upstream, answer: object, message: str
) -> None:
    """502 with what is wrong with them."""
    upstream.on(V1, json_answer(answer))

    with pytest.raises(Exception, match=message) as caught:
        await _infer(service, "v1", ["one", "two"])
    assert getattr(caught.value, "status", None) == 502


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("{}", "/v2/models/org%2Fm%20x/infer?"),
        ("{}/", "/v2/models/org%2Fm%20x/infer?"),
        ("{}/v2", "/v2/models/org%2Fm%20x/infer?"),
        ("{}/serving/v2/?key=1", "/serving/v2/models/org%2Fm%20x/infer?key=1"),
    ],
)
async def test_the_url_of_the_model_is_built_from_any_target_url(upstream: Upstream, url: str, asked: str) -> None:
    """With the version or without, below a path, with a query; names with slashes are one part."""
    upstream.on("*", tensors(output("a", "BYTES", [1], ["x"])))
    service = ServiceClient(UpstreamClient(UpstreamConfig(url=url.format(upstream.origin))))
    config = OipConfig.model_validate({"kind": "oip", "embeddings": {}})

    await OipClient(config, service, "org/m x").infer({"text": ["one"]}, None, {}, {})
    await service.close()

    (seen,) = upstream.asked
    assert f"{seen.raw_path}?{seen.query}" == asked
    assert json.loads(seen.body)["inputs"][0]["data"] == ["one"]
