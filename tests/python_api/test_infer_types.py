"""Inference requests and responses with the signatures of KServe's."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from appliance import InferInput, InferOutput, InferRequest, InferResponse
from appliance.tensors.grpc import inference_pb2 as pb
from appliance.tensors.tensor import RequestedOutput, Tensor


def request(*inputs: InferInput, **fields: Any) -> InferRequest:
    """A request with these inputs."""
    return InferRequest(model_name="model", infer_inputs=list(inputs), request_id="7", **fields)


def test_data_may_be_an_array() -> None:
    """Of any layout; as in KServe's sample of a transformer."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    made = InferInput(name="x", datatype="FP32", shape=list(array.shape), data=array)

    assert made.tensor == Tensor.of_values("x", "FP32", [2, 3], array.ravel().tolist())
    assert made.data is array


def test_nested_lists_have_the_shape_that_is_said() -> None:
    """As numpy reshapes them."""
    made = InferInput("x", [4], "int64", [[1, 2], [3, 4]])

    assert (made.datatype, made.as_numpy().tolist(), made.data) == ("INT64", [1, 2, 3, 4], [[1, 2], [3, 4]])


def test_arrays_can_be_written() -> None:
    """They share nothing with the tensor."""
    made = InferInput.of(Tensor.of_values("x", "FP32", [2], [1.0, 2.0]))
    made.as_numpy()[0] = 5

    assert made.data == [1.0, 2.0]


def test_data_can_be_set_and_changed() -> None:
    """The tensor has what was set last."""
    made = InferInput.of(Tensor.of_values("x", "INT32", [2], [1, 2]))
    made.data[0] = 5
    changed = made.tensor.values()
    made.data = [7, 8]

    assert (changed, made.tensor.values()) == ([5, 2], [7, 8])


def test_bytes_of_a_rest_request_are_texts() -> None:
    """Those that are none, such as an image, stay bytes; over gRPC all do."""
    texts, image = Tensor.of_values("x", "BYTES", [1], ["é"]), Tensor.of_values("x", "BYTES", [1], [b"\xff\xd8"])

    assert InferInput.of(texts, as_texts=True).data == ["é"]
    assert InferInput.of(texts, as_texts=True).as_numpy().tolist() == ["é"]
    assert InferInput.of(image, as_texts=True).data == [b"\xff\xd8"]
    assert InferInput.of(texts).data == ["é".encode()]


def test_an_array_that_loses_its_fractions_is_refused() -> None:
    """A cast from numbers with fractions to whole ones must be the program's own."""
    with pytest.raises(ValueError, match="x: an array of float64 does not fit INT32; convert it with astype"):
        InferInput("x", [1], "INT32", np.array([1.5]))


def test_a_request_becomes_json() -> None:
    """Arrays become lists."""
    made = request(InferInput("x", [1, 2], "FP32", np.array([[1, 2]], np.float32)), parameters={"a": 1})

    assert made.to_rest() == (
        {
            "id": "7",
            "model_name": "model",
            "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}],
            "parameters": {"a": 1},
        },
        None,
    )


def test_a_request_with_encoded_inputs_becomes_binary_data() -> None:
    """And comes back."""
    made = InferInput("x", [2], "FP16")
    made.set_data_from_numpy(np.array([1, 2], np.float16))
    body, length = request(made, request_outputs=[RequestedOutput("y", {"binary_data": True})]).to_rest()
    assert isinstance(body, bytes)
    assert isinstance(length, int)
    read = InferRequest.from_bytes(body, length, "model")

    assert msgspec.json.decode(body[:length])["inputs"][0]["parameters"] == {"binary_data_size": 4}
    assert read.inputs[0].as_numpy().tolist() == [1.0, 2.0]
    assert read.request_outputs == [RequestedOutput("y", {"binary_data": True})]


@pytest.mark.parametrize("data", [["a", b"b"], np.array(["a", "b"], object)])
def test_a_request_becomes_a_message_and_comes_back(data: Any) -> None:
    """Raw if an input is an array."""
    made = request(InferInput("x", [2], "BYTES", data), parameters={"a": True, "b": 2, "c": "d", "e": 0.5})
    message = made.to_grpc()
    read = InferRequest.from_grpc(message)

    assert bool(message.raw_input_contents) == read.use_binary_outputs == isinstance(data, np.ndarray)
    assert (read.id, read.model_name, read.to_dict()["from_grpc"]) == ("7", "model", True)
    assert read.parameters == {"a": True, "b": 2, "c": "d", "e": 0.5}
    assert read.inputs[0].data == [b"a", b"b"]


def test_raw_inputs_are_the_data() -> None:
    """As in a message of gRPC."""
    made = request(InferInput("x", [1], "FP32"), raw_inputs=[np.float32(2.5).tobytes()], from_grpc=True)

    assert made.inputs[0].as_numpy().tolist() == [2.5]
    assert made.use_binary_outputs
    with pytest.raises(ValueError, match="there are 1 tensors, and the encoded elements of 2"):
        request(InferInput("x", [1], "FP32"), raw_inputs=[b"", b""])


def test_a_request_is_a_dataframe() -> None:
    """With a column for each input."""
    numbers, texts = InferInput("n", [2], "INT64", [1, 2]), InferInput("t", [2], "BYTES", ["a", b"b"])

    assert request(numbers, texts).as_dataframe().to_dict("list") == {"n": [1, 2], "t": ["a", "b"]}


def test_a_response_becomes_json_and_comes_back() -> None:
    """With the requested outputs."""
    outputs = [InferOutput("x", [1], "INT64", [1]), InferOutput("y", [1], "BYTES", ["é"])]
    made = InferResponse("7", "model", outputs, requested_outputs=[RequestedOutput("y")])
    body, length = made.to_rest()
    assert isinstance(body, dict)
    read = InferResponse.from_rest(body)

    assert length is None
    assert body["outputs"] == [{"name": "y", "shape": [1], "datatype": "BYTES", "data": ["é"]}]
    assert (read.id, read.outputs[0].data) == ("7", ["é"])
    assert [each.name for each in made.message.outputs] == ["y"]


def test_a_response_becomes_binary_data_and_comes_back() -> None:
    """If its client wants that."""
    made = InferResponse("7", "model", [InferOutput("x", [2], "INT64", [1, 2])], use_binary_outputs=True)
    body, length = made.to_rest()
    assert isinstance(body, bytes)
    assert isinstance(length, int)

    assert InferResponse.from_bytes(body, length).outputs[0].data == [1, 2]


def test_a_response_becomes_a_message_and_comes_back() -> None:
    """With its parameters and those of its outputs."""
    made = InferResponse("7", "model", [InferOutput("x", [1], "FP32", [0.5], {"a": 1})], "2", parameters={"b": "c"})
    message = made.to_grpc()
    read = InferResponse.from_grpc(pb.ModelInferResponse.FromString(message.SerializeToString()))

    assert (read.id, read.model_version, read.parameters, read.to_dict()["from_grpc"]) == ("7", "2", {"b": "c"}, True)
    assert read.outputs == made.outputs


def test_requested_output_that_does_not_exist_is_a_value_error() -> None:
    """With those that do."""
    made = InferResponse("7", "m", [InferOutput("x", [0], "FP32")], requested_outputs=[RequestedOutput("y")])

    with pytest.raises(ValueError, match="there is no output 'y'; the outputs are: x"):
        made.to_rest()


def test_requests_are_equal_by_their_tensors() -> None:
    """A list and an array of the same elements are the same."""
    listed = request(InferInput("x", [2], "FP32", [1.0, 2.0]))
    array = request(InferInput("x", [2], "FP32", np.array([1, 2], np.float32)))

    assert listed == array
    assert listed != request(InferInput("x", [2], "FP32", [1.0, 3.0]))
    assert "x" in repr(listed)
