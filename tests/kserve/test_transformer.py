"""A transformer that was written for KServe, in front of a predictor."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from reference_servers import Reference

from appliance.core.errors import RequestError, UnreachableError
from appliance.kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

NUMBERS = {"instances": [[1.0, 2.5]]}
TENSOR = {"id": "7", "inputs": [{"name": "a", "shape": [2], "datatype": "FP64", "data": [1, 2.5]}]}


@pytest.fixture(scope="session", params=["v1", "v2"])
def transformers(
    request: pytest.FixtureRequest,
    start: Callable[..., Reference],
    kserve_python: Path,
    theirs: Reference,
    ours: Reference,
) -> list[tuple[Reference, str]]:
    """KServe's transformer before KServe's predictor, and ours before ours, with the predictor's protocol."""
    pairs = ((kserve_python, "kserve", theirs), (sys.executable, "appliance.kserve", ours))
    words = ["--predictor_protocol", request.param]
    return [
        (
            start(python, "transformer.py", package, f"--predictor_host=127.0.0.1:{predictor.http}", *words),
            request.param,
        )
        for python, package, predictor in pairs
    ]


def test_answers_are_those_of_kserves_transformer(transformers: list[tuple[Reference, str]]) -> None:
    """Whatever protocol the predictor has; the model's headers of the predictor come along."""
    answers = [httpx.post(f"{each.url}/v1/models/model:predict", json=NUMBERS) for each, _ in transformers]

    assert [each.json() for each in answers] == [{"predictions": [[1.0, 2.5]]}] * 2
    assert [each.headers["x-kind"] for each in answers] == ["ndarray"] * 2


def test_tensors_are_passed_on(transformers: list[tuple[Reference, str]]) -> None:
    """Where the predictor takes them."""
    if transformers[0][1] == "v1":
        pytest.skip("a predictor of version 1 answers with an object")
    answers: list[Any] = [
        httpx.post(f"{each.url}/v2/models/model/infer", json=TENSOR).json() for each, _ in transformers
    ]

    assert [each["outputs"][0]["data"] for each in answers] == [[1.0, 2.5]] * 2


@pytest.mark.parametrize("protocol", ["v1", "v2"])
async def test_the_client_asks_for_health(ours: Reference, protocol: str) -> None:
    """In both versions of the protocol."""
    async with InferenceRESTClient(RESTConfig(protocol=protocol)) as client:
        assert await client.is_server_live(ours.url)
        assert await client.is_model_ready(ours.url, "model")
        if protocol == "v2":
            assert await client.is_server_ready(ours.url)
            assert not await client.is_model_ready(ours.url, "absent")


async def test_the_client_sends_binary_data(theirs: Reference, ours: Reference) -> None:
    """To KServe's server and to ours."""
    tensor = InferInput("a", [2], "FP64")
    tensor.set_data_from_numpy(InferInput("a", [2], "FP64", [1.0, 2.0]).as_numpy())
    request = InferRequest("model", [tensor], "7", parameters={"binary_data_output": True})
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        for server in (theirs, ours):
            response: Any = await client.infer(server.url, request, "model")
            assert response.outputs[0].as_numpy().tolist() == [2.0, 4.0]


async def test_errors_have_the_status_of_the_response(ours: Reference) -> None:
    """And its text; a server that is not there is told apart."""
    async with InferenceRESTClient(RESTConfig(retries=0)) as client:
        with pytest.raises(RequestError, match="this input is invalid") as refused:
            await client.infer(ours.url, {"instances": ["invalid"]}, "model")
        with pytest.raises(UnreachableError):
            await client.infer("http://127.0.0.1:9", {"instances": []}, "model")

    assert refused.value.status == 400
