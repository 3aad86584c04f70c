"""A transformer that was written for KServe, in front of a predictor."""

from __future__ import annotations

import base64
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from reference_servers import Reference

from appliance.core.errors import GatewayError, RequestError, UnavailableError
from appliance.core.model import ModelRequest, Operation
from appliance.kserve import (
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    InferResponse,
    Model,
    PredictorConfig,
    RESTConfig,
)
from appliance.kserve.errors import InvalidInput
from appliance.kserve.predictor_client import PredictorClient
from appliance.python_api.model_adapter import PythonModelAdapter
from appliance.tensors.grpc import inference_pb2 as pb
from appliance.tensors.grpc.inference_pb2_grpc import GRPCInferenceServiceStub

# The first request of a server on a loaded machine may import for long.
get = partial(httpx.get, timeout=60)
post = partial(httpx.post, timeout=60)

NUMBERS = {"instances": [[1.0, 2.5]]}
TENSOR = {"id": "7", "inputs": [{"name": "a", "shape": [2], "datatype": "FP64", "data": [1, 2.5]}]}


@asynccontextmanager
async def loaded(model: Model) -> AsyncIterator[PythonModelAdapter]:
    """The model as a server runs it, until it stops it."""
    adapter = PythonModelAdapter(model)
    await adapter.load({})
    try:
        yield adapter
    finally:
        await adapter.close()


@pytest.fixture(scope="session", params=["v1", "v2", "grpc-v2"])
def transformers(
    request: pytest.FixtureRequest,
    start: Callable[..., Reference],
    kserve_python: Path,
    theirs: Reference,
    ours: Reference,
) -> tuple[str, list[Reference]]:
    """The predictor's protocol; KServe's transformer before KServe's predictor, and ours before ours."""
    pairs = ((kserve_python, "kserve", theirs), (sys.executable, "appliance.kserve", ours))
    servers = []
    for python, package, predictor in pairs:
        port = predictor.grpc if request.param == "grpc-v2" else predictor.http
        words = [f"--predictor_host=127.0.0.1:{port}", "--predictor_protocol", request.param]
        servers.append(start(python, "transformer.py", package, *words, "--enable_predictor_health_check"))
    return request.param, servers


def test_answers_are_those_of_kserves_transformer(transformers: tuple[str, list[Reference]]) -> None:
    """Whatever protocol the predictor has; over REST, the headers of the predictor's model come along."""
    protocol, servers = transformers
    answers = [post(f"{each.url}/v1/models/model:predict", json=NUMBERS) for each in servers]

    assert [each.json() for each in answers] == [{"predictions": [[1.0, 2.5]]}] * 2
    assert [each.headers.get("x-kind") for each in answers] == [None if protocol == "grpc-v2" else "ndarray"] * 2
    assert len(answers[1].headers.get_list("x-request-id")) == 1


def test_tensors_are_passed_on(transformers: tuple[str, list[Reference]]) -> None:
    """A predictor of version 1 answers tensors with an object, which is no answer in version 2."""
    protocol, servers = transformers
    answers: list[Any] = [post(f"{each.url}/v2/models/model/infer", json=TENSOR) for each in servers]

    if protocol == "v1":
        assert [each.status_code for each in answers] == [500, 500]
    else:
        assert [each.json()["outputs"][0]["data"] for each in answers] == [[1.0, 2.5]] * 2


def test_images_are_transformed(transformers: tuple[str, list[Reference]]) -> None:
    """As KServe's sample of an image transformer does."""
    _, servers = transformers
    body = {"instances": [{"image": {"b64": base64.b64encode(bytes([0, 51, 255])).decode()}}]}
    answers = [post(f"{each.url}/v1/models/image:predict", json=body) for each in servers]

    assert [each.status_code for each in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()


def test_messages_are_transformed(transformers: tuple[str, list[Reference]]) -> None:
    """Over gRPC to the transformer, too; see `test_tensors_are_passed_on` for version 1."""
    protocol, servers = transformers
    request = pb.ModelInferRequest(model_name="image")
    request.inputs.add(name="a", datatype="BYTES", shape=[1]).contents.bytes_contents.append(bytes([0, 51, 255]))
    for server in servers:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
            stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            if protocol == "v1":
                with pytest.raises(grpc.RpcError):
                    stub.ModelInfer(request, timeout=60)
                continue
            response = InferResponse.from_grpc(stub.ModelInfer(request, timeout=60))
            assert response.outputs[0].as_numpy().tolist() == [pytest.approx(0.4)]


def test_a_transformer_is_ready_while_its_predictor_is(transformers: tuple[str, list[Reference]]) -> None:
    """The predictor has no model of the name `stray`."""
    _, servers = transformers
    paths = [f"/v2/models/{name}/ready" for name in ("image", "stray")]

    assert [[get(each.url + path).status_code for path in paths] for each in servers] == [[200, 503]] * 2


@pytest.mark.parametrize(
    ("protocol", "payload", "status", "text"),
    [
        ("v1", {"instances": ["invalid"]}, 400, "this input is invalid"),
        ("v2", InferRequest("model", [InferInput("a", [1], "BYTES", ["invalid"])]), 400, "this input is invalid"),
        ("grpc-v2", InferRequest("absent", [InferInput("a", [1], "FP32", [1.0])]), 404, "'absent' does not exist"),
    ],
)
async def test_errors_of_the_predictor_keep_their_status(
    ours: Reference, protocol: str, payload: Any, status: int, text: str
) -> None:
    """And their text."""
    port = ours.grpc if protocol == "grpc-v2" else ours.http
    model = Model("model")
    model.predictor_config = PredictorConfig(f"127.0.0.1:{port}", protocol)
    async with loaded(model):
        with pytest.raises(RequestError, match=text) as refused:
            await model.predict(payload)

    assert refused.value.status == status


@pytest.mark.parametrize("protocol", ["v1", "v2", "grpc-v2"])
async def test_a_predictor_that_is_away_is_told_apart(protocol: str) -> None:
    """By the status of requests, and by health."""
    model = Model("model")
    model.predictor_config = PredictorConfig(
        "127.0.0.1:9", protocol, predictor_request_timeout_seconds=5, predictor_health_check=True
    )
    async with loaded(model) as adapter:
        with pytest.raises(UnavailableError, match=r"^its predictor is not ready, because of 127\.0\.0\.1:9: .+"):
            await adapter.check()
        with pytest.raises(GatewayError, match="The predictor"):
            await model.predict(InferRequest("model", [InferInput("a", [1], "FP32", [1.0])]))


class Predictor(PredictorClient):
    """A predictor that counts how often it is asked whether it is ready."""

    asked = 0
    is_ready = False

    async def _is_ready(self, model_name: str) -> bool:
        self.asked += 1
        return self.is_ready

    async def infer(self, *_: Any) -> Any:
        """Not asked for."""

    async def close(self) -> None:
        """Nothing is open."""


async def test_a_ready_predictor_is_rarely_asked() -> None:
    """Health is checked twice a second, which would fill its log; one that is not ready is asked each time."""
    predictor = Predictor(PredictorConfig("there:8080"))
    for _ in range(2):
        with pytest.raises(UnavailableError, match=r"^its predictor is not ready, because of there:8080: it says so$"):
            await predictor.require_ready("model")
    predictor.is_ready = True
    await predictor.require_ready("model")
    predictor.is_ready = False
    await predictor.require_ready("model")
    asked = predictor.asked
    # As if the time had passed.
    predictor._ready_until = 0
    with pytest.raises(UnavailableError):
        await predictor.require_ready("model")

    assert (asked, predictor.asked) == (3, 4)


async def test_connections_are_closed_when_the_model_stops(ours: Reference) -> None:
    """By the server, after the last response."""
    model = Model("model")
    model.predictor_config = PredictorConfig(f"127.0.0.1:{ours.http}")
    async with loaded(model) as adapter:
        answer = await adapter.handle(ModelRequest(Operation.PREDICTION, b'{"instances": [1]}'))

    assert answer.body == b'{"predictions":[2]}'
    with pytest.raises(RuntimeError, match="closed"):
        await model.predict({"instances": [1]})


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


async def test_errors_are_those_of_httpx(ours: Reference) -> None:
    """With the status and the text of the response; a server that is not there is told apart."""
    async with InferenceRESTClient(RESTConfig(retries=0)) as client:
        with pytest.raises(httpx.HTTPStatusError, match="this input is invalid") as refused:
            await client.infer(ours.url, {"instances": ["invalid"]}, "model")
        with pytest.raises(httpx.ConnectError):
            await client.infer("http://127.0.0.1:9", {"instances": []}, "model")

    assert refused.value.response.status_code == 400


async def test_transports_and_logins_are_those_of_httpx() -> None:
    """As KServe's config has them."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"predictions": [request.headers["authorization"]]})

    config = RESTConfig(transport=httpx.MockTransport(answer), auth=("me", "secret"))
    async with InferenceRESTClient(config) as client:
        response = await client.infer("http://there", {"instances": []}, "model")

    assert response == {"predictions": ["Basic " + base64.b64encode(b"me:secret").decode()]}


async def test_messages_are_sent_to_either_server(theirs: Reference, ours: Reference) -> None:
    """The client over gRPC; an error is gRPC's own."""
    request = InferRequest("model", [InferInput("a", [2], "FP64", [1.0, 2.0])], "7")
    for server in (theirs, ours):
        async with InferenceGRPCClient(f"127.0.0.1:{server.grpc}") as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("model")
            response = await client.infer(request)
            assert response.outputs[0].as_numpy().tolist() == [2.0, 4.0]
            with pytest.raises(grpc.RpcError) as refused:
                await client.infer(InferRequest("absent", request.inputs))
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_client_over_grpc_sends_tensors_only() -> None:
    """An object of version 1 is refused before it is sent."""
    async with InferenceGRPCClient("127.0.0.1:9", retries=0) as client:
        with pytest.raises(InvalidInput, match="must be an InferRequest"):
            await client.infer({"instances": []})  # type: ignore[arg-type]
