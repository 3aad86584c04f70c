"""Models written in Python for clients of the Open Inference Protocol, and their tensors, as in KServe."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import msgspec

from appliance.core.errors import LoadError, RequestError
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.core.openai_types import Json
from appliance.python_api.base_model import BasePythonModel, overridable, overridden_method
from appliance.python_api.responses import InvalidResultError, describe_type, to_json
from appliance.python_api.user_code import call_method, describe_exception, is_stream, stream_items, user_code
from appliance.tensors.arrays import to_array, to_tensor
from appliance.tensors.codec import LENGTH_HEADER, decode, read_request, read_response, write_request, write_response
from appliance.tensors.tensor import (
    InferenceRequest,
    InferenceResponse,
    Parameters,
    RequestedOutput,
    Tensor,
    TensorSpec,
    smallest_tensor,
)

if TYPE_CHECKING:
    import numpy as np

Headers = Mapping[str, str]

METHODS: Mapping[Operation, str] = {
    Operation.INFERENCE: "predict",
    Operation.PREDICTION: "predict",
    Operation.EXPLANATION: "explain",
}
"""The method of each operation."""


class _NamedTensor:
    """A tensor of a request or of a response."""

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        datatype: str,
        data: Sequence[Any] | bytes = (),  # Any: elements, or lists of them
        parameters: Parameters | None = None,
    ) -> None:
        """`data` are the elements in row-major order, nested lists of the shape, or the protocol's bytes; they may be
        set later by `set_data_from_numpy`.

        Raises:
            ValueError: they do not fit the datatype and the shape.
        """
        self.name = name
        self.datatype = datatype
        self.shape = list(shape)
        self.parameters = dict(parameters or {})
        self._tensor: Tensor | None = None
        with _value_errors():
            if isinstance(data, bytes):
                self._tensor = Tensor.of_raw(name, datatype, self.shape, data)
            elif data:
                self._tensor = Tensor.of_nested(name, datatype, self.shape, list(data))

    @classmethod
    def from_numpy(cls, name: str, array: np.ndarray[Any, Any], datatype: str | None = None) -> Self:
        """Return an array as a tensor; a `datatype` of None is the array's own.

        Raises:
            TypeError: the protocol has no datatype for such an array.
            ValueError: its elements do not fit the datatype.
        """
        with _value_errors():
            return cls.of(to_tensor(name, array, datatype))

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """Return a tensor of the protocol as one of this class."""
        named = cls(tensor.name, tensor.shape, tensor.datatype, parameters=tensor.parameters)
        named._tensor = tensor
        return named

    @property
    def tensor(self) -> Tensor:
        """The tensor of the protocol.

        Raises:
            ValueError: it has a shape with elements, and no data.
        """
        if self._tensor is None:
            with _value_errors():
                self._tensor = Tensor.of_values(self.name, self.datatype, self.shape, ())
        return replace(self._tensor, parameters=self.parameters)

    @property
    def data(self) -> list[Any]:  # Any: elements
        """The elements in row-major order; those of BYTES are bytes."""
        return self.tensor.values()

    def as_numpy(self) -> np.ndarray[Any, Any]:
        """Return the elements in the tensor's shape, read-only if the array shares their bytes.

        BYTES become an array of objects, each of them bytes; BF16, which numpy lacks, becomes float32.
        """
        return to_array(self.tensor)

    def as_string(self) -> list[str]:
        """Return the elements of BYTES as texts.

        Raises:
            RequestError: they are not texts.
        """
        return self.tensor.texts()

    def set_data_from_numpy(self, array: np.ndarray[Any, Any], binary_data: bool = True) -> None:  # noqa: ARG002, FBT001, FBT002, RUF100 - KServe's; the client chooses the encoding
        """Set the elements and the shape to those of an array."""
        with _value_errors():
            self._tensor = to_tensor(self.name, array, self.datatype)
        self.shape = list(array.shape)


@contextmanager
def _value_errors() -> Iterator[None]:
    """Turn request errors into `ValueError`: what a program puts in a tensor is not the client's fault."""
    try:
        yield
    except RequestError as error:
        raise ValueError(str(error)) from error


class InferInput(_NamedTensor):
    """A tensor of a request."""


class InferOutput(_NamedTensor):
    """A tensor of a response."""


@dataclass
class InferRequest:
    """Tensors for a model."""

    model_name: str
    inputs: list[InferInput]
    id: str | None = None
    parameters: Parameters = field(default_factory=dict)
    request_outputs: Sequence[RequestedOutput] = ()
    """The outputs that the client requests; empty means all."""

    @classmethod
    def of(cls, model_name: str, request: InferenceRequest) -> InferRequest:
        """Return a request of the protocol as one of this class."""
        inputs = [InferInput.of(tensor) for tensor in request.inputs]
        return cls(model_name, inputs, request.id, request.parameters, request.outputs)

    def get_input_by_name(self, name: str) -> InferInput | None:
        """Return the input of this name, or None."""
        return next((each for each in self.inputs if each.name == name), None)


class InferResponse:
    """The tensors that a model returns."""

    def __init__(
        self,
        response_id: str | None,
        model_name: str,
        infer_outputs: Sequence[InferOutput],
        model_version: str | None = None,
        parameters: Parameters | None = None,
    ) -> None:
        self.id = response_id
        self.model_name = model_name
        self.outputs = list(infer_outputs)
        self.model_version = model_version
        self.parameters = dict(parameters or {})

    @property
    def message(self) -> InferenceResponse:
        """The response of the protocol."""
        tensors = [output.tensor for output in self.outputs]
        return InferenceResponse(self.model_name, self.model_version, tensors, self.id, self.parameters)

    def get_output_by_name(self, name: str) -> InferOutput | None:
        """Return the output of this name, or None."""
        return next((each for each in self.outputs if each.name == name), None)


Payload = InferRequest | Json
"""Tensors in version 2 of the protocol, a JSON object such as ``{"instances": [...]}`` in version 1."""


# Any throughout: a step passes what it likes to the next one, and may be asynchronous.
class Model(BasePythonModel):
    """
    A model for clients of the Open Inference Protocol: their requests go through `preprocess`, `predict` or `explain`,
    and `postprocess`, each plain, in a thread, or asynchronous.
    """

    @overridable
    def preprocess(self, payload: Payload, headers: Headers | None = None) -> Any:  # noqa: ARG002 - to be overridden
        """Return what `predict` gets."""
        return payload

    @overridable
    def predict(self, payload: Any, headers: Headers | None = None) -> Any:
        """Return an `InferResponse` for an `InferRequest`, a mapping such as ``{"predictions": [...]}`` for a mapping.

        A generator streams to clients of the protocol's version 1: bytes and texts, or mappings as lines of JSON.
        """
        raise NotImplementedError

    @overridable
    def postprocess(self, result: Any, headers: Headers | None = None) -> Any:  # noqa: ARG002 - to be overridden
        """Return what the client gets."""
        return result

    @overridable
    def explain(self, payload: Any, headers: Headers | None = None) -> Any:
        """Return a mapping that explains the prediction for a mapping."""
        raise NotImplementedError

    def get_input_types(self) -> Sequence[Mapping[str, Any]]:
        """Return ``{"name", "datatype", "shape"}`` of each input, for metadata."""
        return ()

    def get_output_types(self) -> Sequence[Mapping[str, Any]]:
        """Return the same of each output."""
        return ()


def operations(model: Model) -> frozenset[Operation]:
    """Return the operations whose methods the model's class overrides."""
    return frozenset(operation for operation, name in METHODS.items() if overridden_method(model, name))


def describe(model: Model) -> Mapping[str, Any]:
    """Return the inputs and outputs, for metadata."""
    with user_code(f"the types of {type(model).__name__}"):
        return {"inputs": list(model.get_input_types()), "outputs": list(model.get_output_types())}


def warmup_request(model: Model) -> ModelRequest | None:
    """Return the request of the model's proof: by default zeros for its declared inputs; None if it declares none.

    Raises:
        LoadError: what it declares are no inputs.
    """
    offered = operations(model)
    if proof := model.proof:
        operation = Operation.INFERENCE if _has_tensors(proof) else Operation.PREDICTION
        operation = operation if operation in offered else Operation.EXPLANATION
        return ModelRequest(operation, msgspec.json.encode(to_json(proof)))
    inputs = describe(model)["inputs"]
    if not inputs or Operation.INFERENCE not in offered:
        return None
    try:
        specs = [TensorSpec(each["name"], each["datatype"], tuple(each["shape"])) for each in inputs]
        body, headers = write_request(InferenceRequest(list(map(smallest_tensor, specs))))
    except (RequestError, LookupError, TypeError) as error:
        raise LoadError(
            f'{type(model).__name__}.get_input_types() returned {inputs!r:.200}; each must be as {{"name": "x", '
            f'"datatype": "FP32", "shape": [-1, 4]}}: {describe_exception(error)}'
        ) from error
    return ModelRequest(Operation.INFERENCE, body, headers)


def _has_tensors(proof: Mapping[str, Any]) -> bool:
    inputs = proof.get("inputs")
    return isinstance(inputs, list | tuple) and all(isinstance(each, Mapping) and "datatype" in each for each in inputs)


async def handle(model: Model, request: ModelRequest) -> ModelResponse:
    """Return the response to a request."""
    is_inference = request.operation is Operation.INFERENCE
    value: Any
    if is_inference:
        value = InferRequest.of(model.name, read_request(request.body, request.headers.get(LENGTH_HEADER)))
    else:
        value = decode(request.body, dict[str, Any])
    for name in ("preprocess", METHODS[request.operation], "postprocess"):
        if (step := overridden_method(model, name)) is not None:
            value = await call_method(step, value, request.headers)
    if is_inference:
        if is_stream(value):
            raise InvalidResultError("predict is a generator; only clients of /v1/models/NAME:predict take a stream")
        body, headers = write_response(_to_message(value), prefers_binary=True)
        return ModelResponse(body, headers=headers)
    if is_stream(value):
        # Only the model knows what it writes.
        return ModelResponse(_stream(value), media_type="application/octet-stream")
    is_bare = isinstance(value, list | tuple) or hasattr(value, "tolist")
    expected = 'a mapping such as {"predictions": [...]}, or a list'
    return ModelResponse(msgspec.json.encode(to_json({"predictions": value} if is_bare else value, expected)))


async def _stream(stream: Any) -> AsyncGenerator[bytes]:
    """Yield the items of a stream: bytes and texts as they are, anything else as a line of JSON."""
    async with aclosing(stream_items(stream)) as items:
        async for item in items:
            if isinstance(item, bytes | str):
                yield item if isinstance(item, bytes) else item.encode()
            else:
                yield msgspec.json.encode(to_json(item)) + b"\n"


def _to_message(result: Any) -> InferenceResponse:
    """Return the tensors of a result, which may be a mapping in the protocol's own shape."""
    try:
        if isinstance(result, InferResponse):
            return result.message
        return read_response(msgspec.json.encode(to_json(result, "an InferResponse")))
    except InvalidResultError:
        raise
    except Exception as error:
        # What a user puts in a response of ours can break it in any way.
        raise InvalidResultError(
            f"the model returned {describe_type(result)}; must be an InferResponse: {describe_exception(error)}"
        ) from error
