"""Models written in Python for clients of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.core.openai_types import Json
from appliance.python_api.base_model import BasePythonModel, overridable, overridden_method
from appliance.python_api.infer_types import InferRequest, InferResponse
from appliance.python_api.responses import InvalidResultError, describe_type, to_json
from appliance.python_api.user_code import call_method, describe_exception, is_stream, stream_items, user_code
from appliance.tensors.codec import LENGTH_HEADER, decode, read_request, read_response, write_response
from appliance.tensors.tensor import InferenceResponse

Payload = InferRequest | Json
"""Tensors in version 2 of the protocol, a JSON object such as ``{"instances": [...]}`` in version 1."""

Headers = Mapping[str, str]

METHODS: Mapping[Operation, str] = {
    Operation.INFERENCE: "predict",
    Operation.PREDICTION: "predict",
    Operation.EXPLANATION: "explain",
}
"""The method of each operation."""


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


async def handle(model: Model, request: ModelRequest) -> ModelResponse:
    """Return the response to a request.

    Raises:
        RequestError: the request is at fault.
        InvalidResultError: the model's result is not a response.
    """
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
    return ModelResponse(msgspec.json.encode(to_json({"predictions": value} if is_bare else value)))


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
        return read_response(msgspec.json.encode(to_json(result)))
    except InvalidResultError:
        raise
    except Exception as error:
        # What a user puts in a response of ours can break it in any way.
        raise InvalidResultError(
            f"the model returned {describe_type(result)}, which is not an InferResponse: {describe_exception(error)}"
        ) from error
