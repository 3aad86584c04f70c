"""Models of tensors in Python, for clients of the Open Inference Protocol."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from python_api.model_requests import load_model
from python_api.program import Program

from appliance import InferInput, InferOutput, InferRequest, InferResponse, Model
from appliance.core.errors import RequestError, UnsupportedOperationError
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.python_api.responses import InvalidResultError
from appliance.tensors.codec import LENGTH_HEADER, read_response, write_request
from appliance.tensors.grpc import inference_pb2, inference_pb2_grpc
from appliance.tensors.tensor import InferenceRequest, InferenceResponse, Tensor


@pytest.fixture(scope="session")
def doubling(start: Callable[..., Program]) -> Program:
    """The program that doubles."""
    return start("tensors.py").wait_until_ready(60)


def test_a_model_of_tensors_answers_every_version_of_the_protocol(doubling: Program) -> None:
    """JSON in both versions over REST, and gRPC."""
    tensor = {"name": "x", "shape": [2, 1], "datatype": "FP32", "data": [1, 2.5]}
    _, first = doubling.post("/v1/models/doubling:predict", {"instances": [[1], [2]]})
    status, second = doubling.post("/v2/models/doubling/infer", {"id": "7", "inputs": [tensor]})
    with grpc.insecure_channel(f"127.0.0.1:{doubling.grpc_port}") as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        asked = inference_pb2.ModelInferRequest(model_name="doubling")
        asked.inputs.add(name="x", datatype="INT64", shape=[2]).contents.int64_contents.extend([3, 4])
        third = stub.ModelInfer(asked, timeout=10)

    assert first == {"predictions": [[2], [4]]}
    assert (status, second["id"], second["model_name"]) == (200, "7", "doubling")
    assert second["outputs"] == [{"name": "doubled", "datatype": "FP32", "shape": [2, 1], "data": [2.0, 5.0]}]
    assert [each.name for each in third.outputs] == ["doubled"]


def test_metadata_says_that_python_computes(doubling: Program) -> None:
    """As its platform."""
    _, told = doubling.get("/v2/models/doubling")

    assert told["platform"] == "python_model"


def test_unsupported_operation_of_a_tensor_model_is_a_clear_error(doubling: Program) -> None:
    """It has no explanations, and no chat."""
    explained, _ = doubling.post("/v1/models/doubling:explain", {"instances": []})
    chatted, said = doubling.post("/v1/chat/completions", {"model": "doubling", "messages": []})

    assert (explained, chatted) == (400, 400)
    assert said["error"]["code"] == "unsupported_operation"


class Steps(Model):
    """Each step leaves its mark; `predict` returns what the test gives it."""

    def __init__(self, made: Any = None) -> None:
        super().__init__("steps")
        self.made = made
        self.seen: list[Any] = []

    async def preprocess(self, payload: Any, headers: Any = None) -> Any:
        self.seen.append(headers.get("x-tenant"))
        return payload

    def predict(self, payload: Any, headers: Any = None) -> Any:
        self.seen.append(payload)
        return payload | {"predicted": True} if self.made is None else self.made

    async def postprocess(self, result: Any, headers: Any = None) -> Any:
        return result if self.made is not None else result | {"post": True}

    async def explain(self, payload: Any, headers: Any = None) -> Any:
        return payload | {"explained": True}

    def get_input_types(self) -> Any:
        return [{"name": "x", "datatype": "FP32", "shape": [-1]}]


async def send(model: Model, operation: Operation, body: object = None) -> ModelResponse:
    """The reply to JSON, or to one tensor."""
    bridge = await load_model(model)
    if operation is not Operation.INFERENCE:
        return await bridge.handle(ModelRequest(operation, json.dumps(body).encode(), {"x-tenant": "blue"}))
    raw, says = write_request(InferenceRequest([Tensor.of_values("x", "FP32", [2], [1.0, 2.0])], id="7"))
    return await bridge.handle(ModelRequest(operation, raw, says))


def inferred(reply: ModelResponse) -> InferenceResponse:
    """The tensors of a reply."""
    assert isinstance(reply.body, bytes)
    return read_response(reply.body, reply.headers.get(LENGTH_HEADER))


async def test_each_step_may_be_plain_or_asynchronous() -> None:
    """They follow each other, and hear the headers."""
    model = Steps()
    predicted = await send(model, Operation.PREDICTION, {"instances": [1]})
    explained = await send(model, Operation.EXPLANATION, {"instances": [1]})
    bridge = await load_model(model)

    assert isinstance(predicted.body, bytes)
    assert isinstance(explained.body, bytes)
    assert json.loads(predicted.body) == {"instances": [1], "predicted": True, "post": True}
    assert json.loads(explained.body) == {"instances": [1], "explained": True, "post": True}
    assert model.seen[0] == "blue"
    assert bridge.operations == {Operation.INFERENCE, Operation.PREDICTION, Operation.EXPLANATION}
    assert bridge.describe()["inputs"][0]["name"] == "x"
    assert bridge.warmup_request is not None
    assert bridge.warmup_request.operation is Operation.INFERENCE


async def test_tensor_request_is_an_infer_request() -> None:
    """With its id, its inputs by name, and their elements in numpy."""
    model = Steps(InferResponse("7", "steps", []))
    await send(model, Operation.INFERENCE)
    request = model.seen[-1]

    assert isinstance(request, InferRequest)
    assert (request.id, request.model_name) == ("7", "steps")
    tensor = request.get_input_by_name("x")
    assert tensor is not None
    assert (tensor.shape, tensor.datatype, tensor.data) == ([2], "FP32", [1.0, 2.0])
    assert tensor.as_numpy().tolist() == [1.0, 2.0]
    assert request.get_input_by_name("y") is None


@pytest.mark.parametrize(
    "made",
    [
        InferResponse(None, "steps", [InferOutput("y", [2], "INT64", [1, 2])]),
        {"outputs": [{"name": "y", "shape": [2], "datatype": "INT64", "data": np.array([1, 2])}]},
    ],
)
async def test_an_answer_in_tensors_is_an_object_or_the_protocols_mapping(made: Any) -> None:
    """Both come out as tensors."""
    (output,) = inferred(await send(Steps(made), Operation.INFERENCE)).outputs

    assert (output.name, output.datatype, output.values()) == ("y", "INT64", [1, 2])


@pytest.mark.parametrize("made", [7, "text", {"predictions": [1]}, {"outputs": [{"name": "y"}]}])
async def test_result_without_tensors_is_the_models_error(made: Any) -> None:
    """The client's request was good."""
    with pytest.raises(InvalidResultError):
        await send(Steps(made), Operation.INFERENCE)


async def test_a_bare_list_is_the_predictions() -> None:
    """An array too."""
    replies = [await send(Steps(made), Operation.PREDICTION, {}) for made in ([1, 2], np.array([1, 2]))]

    assert [reply.body for reply in replies] == [b'{"predictions":[1,2]}'] * 2


async def test_a_method_that_is_not_there_is_not_offered() -> None:
    """The operations are the methods of the class here too."""

    class Explaining(Model):
        def explain(self, payload: Any, headers: Any = None) -> Any:
            raise NotImplementedError

    bridge = await load_model(Explaining("explaining"))

    assert bridge.operations == {Operation.EXPLANATION}
    with pytest.raises(UnsupportedOperationError):
        await bridge.handle(ModelRequest(Operation.EXPLANATION, b"{}"))
    with pytest.raises(RequestError, match="not valid JSON"):
        await bridge.handle(ModelRequest(Operation.EXPLANATION, b"{"))


@pytest.mark.parametrize(
    ("dtype", "datatype"),
    [
        (np.bool_, "BOOL"),
        (np.uint8, "UINT8"),
        (np.int16, "INT16"),
        (np.dtype(">i4"), "INT32"),
        (np.int64, "INT64"),
        (np.float16, "FP16"),
        (np.float32, "FP32"),
        (np.float64, "FP64"),
    ],
)
def test_arrays_become_tensors_and_come_back(dtype: Any, datatype: str) -> None:
    """Whatever their datatype, their order of bytes and their layout in memory."""
    array = np.array([[0, 1, 1], [1, 0, 1]], dtype).T
    made = InferOutput.from_numpy("x", array)

    assert (made.datatype, made.shape) == (datatype, [3, 2])
    assert np.array_equal(made.as_numpy(), array)


@pytest.mark.parametrize(
    "array", [np.array([["é", "b"]]), np.array([["é", "b"]], object), np.array([[b"\xc3\xa9", b"b"]])]
)
def test_arrays_of_texts_are_bytes(array: Any) -> None:
    """In UTF-8, whatever numpy calls them."""
    made = InferOutput.from_numpy("x", array)

    assert (made.datatype, made.shape, made.as_string()) == ("BYTES", [1, 2], ["é", "b"])
    assert made.as_numpy().tolist() == [["é".encode(), b"b"]]


def test_bf16_is_float32_in_numpy() -> None:
    """Which has no such type."""
    made = InferInput("x", [2], "BF16", [1.5, -2.0])
    copy = InferInput("y", [0], "BF16")
    copy.set_data_from_numpy(made.as_numpy())

    assert made.as_numpy().dtype == np.float32
    assert (copy.shape, copy.datatype, copy.data) == ([2], "BF16", [1.5, -2.0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: InferOutput("x", [3], "FP32", [1.0]),
        lambda: InferOutput("x", [1], "FP99", [1.0]),
        lambda: InferOutput("x", [1], "INT8", [1000]),
        lambda: InferOutput("x", [1], "FP32", b"123"),
        lambda: InferOutput("x", [1], "FP32").tensor,
    ],
)
def test_invalid_tensor_is_a_value_error(make: Callable[[], object]) -> None:
    """A client that asked rightly is not told that it did not."""
    with pytest.raises(ValueError, match=r"x|FP99"):
        make()


def test_array_without_a_datatype_is_a_type_error() -> None:
    """With what to do about it."""
    with pytest.raises(TypeError, match="x: there is no datatype for an array of complex128; give it another"):
        InferOutput.from_numpy("x", np.array([1j]))


def test_outputs_are_found_by_name() -> None:
    """As inputs are."""
    output = InferOutput("y", [1], "FP32", [1.0])
    response = InferResponse("7", "steps", [output])

    assert response.get_output_by_name("y") is output
    assert response.get_output_by_name("z") is None


class Labelling(Model):
    """Sets headers of its response, in both steps that may."""

    def __init__(self, **headers: str) -> None:
        super().__init__("labelling", return_response_headers=True)
        self.headers = headers

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        response_headers["X-Model"] = "one"
        response_headers.update(self.headers)
        output = InferOutput("y", [1], "BYTES", ["a"])
        return InferResponse("7", "steps", [output]) if isinstance(payload, InferRequest) else {"predictions": ["a"]}

    async def postprocess(self, result: Any, headers: Any = None, response_headers: Any = None) -> Any:
        response_headers["x-also"] = headers.get("x-tenant", "none")
        return result


async def test_a_model_sets_headers_of_its_response() -> None:
    """Those of the body and of the connection are the server's."""
    response = await send(Labelling(**{"Content-Length": "3", "content-type": "text/x"}), Operation.PREDICTION, {})

    assert response.headers == {"x-model": "one", "x-also": "blue"}


@pytest.mark.parametrize("headers", [{"a b": "c"}, {"a": "b\r\nc: d"}])
async def test_a_response_header_that_is_none_is_the_models_error(headers: Mapping[str, str]) -> None:
    """It could not be sent, or would begin another one."""
    with pytest.raises(InvalidResultError, match="the model set the response header 'a"):
        await send(Labelling(**headers), Operation.PREDICTION, {})


async def test_a_response_may_have_the_contents_of_a_message() -> None:
    """As KServe's samples for gRPC return them."""
    made = {"outputs": [{"name": "y", "shape": [2], "datatype": "FP32", "contents": {"fp32_contents": [1, 2]}}]}
    (output,) = inferred(await send(Steps(made), Operation.INFERENCE)).outputs

    assert output.values() == [1.0, 2.0]


def test_headers_of_a_model_reach_clients_of_every_version(doubling: Program) -> None:
    """In gRPC they come after the message."""
    url, tensor = f"http://127.0.0.1:{doubling.port}", {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
    first = httpx.post(f"{url}/v1/models/labelling:predict", json={"instances": [1]})
    second = httpx.post(f"{url}/v2/models/labelling/infer", json={"inputs": [tensor]})
    with grpc.insecure_channel(f"127.0.0.1:{doubling.grpc_port}") as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        asked = inference_pb2.ModelInferRequest(model_name="labelling")
        _, call = stub.ModelInfer.with_call(asked, timeout=10)

    assert (first.headers["x-model"], second.headers["x-model"]) == ("one", "one")
    assert dict(call.trailing_metadata())["x-model"] == "one"
