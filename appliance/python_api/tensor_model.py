"""Models written in Python for clients of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.core.openai_types import Json
from appliance.python_api.base_model import BasePythonModel, overridable, overridden_method
from appliance.python_api.infer_types import InferRequest, InferResponse
from appliance.python_api.serialization import InvalidResultError, describe_type, to_json
from appliance.python_api.user_code import call_method, describe_exception, is_stream, stream_items, user_code
from appliance.tensors.codec import LENGTH_HEADER, decode, read_request, read_response, write_response
from appliance.tensors.tensor import InferenceResponse

Payload = InferRequest | Json
"""Tensors in version 2 of the protocol, a JSON object such as ``{"instances": [...]}`` in version 1."""

Headers = Mapping[str, str]

_METHODS: Mapping[Operation, str] = {
    Operation.INFERENCE: "predict",
    Operation.PREDICTION: "predict",
    Operation.EXPLANATION: "explain",
}

TENSOR_OPERATIONS = frozenset(_METHODS)
"""The operations of models of tensors."""


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


class TensorHandler:
    """Handles requests of the Open Inference Protocol with the methods of a `Model`."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.operations = frozenset(each for each, name in _METHODS.items() if overridden_method(model, name))

    async def handle(self, request: ModelRequest) -> ModelResponse:
        """Return the response to a request.

        Raises:
            RequestError: the request is at fault.
            InvalidResultError: the model's result is not a response.
        """
        method = getattr(self._model, _METHODS[request.operation])
        if request.operation is Operation.INFERENCE:
            tensors = read_request(request.body, request.headers.get(LENGTH_HEADER))
            result = await self._run(InferRequest.of(self._model.name, tensors), method, request.headers)
            if is_stream(result):
                raise InvalidResultError(
                    "predict is a generator; only clients of /v1/models/NAME:predict take a stream"
                )
            body, headers = write_response(_to_message(result), prefers_binary=True)
            return ModelResponse(body, headers=headers)
        result = await self._run(decode(request.body, dict[str, Any]), method, request.headers)
        if is_stream(result):
            # Only the model knows what it writes.
            return ModelResponse(_stream(result), media_type="application/octet-stream")
        is_bare = isinstance(result, list | tuple) or hasattr(result, "tolist")
        return ModelResponse(msgspec.json.encode(to_json({"predictions": result} if is_bare else result)))

    def describe(self) -> Mapping[str, Any]:
        """Return the inputs and outputs, for metadata."""
        with user_code(f"the types of {type(self._model).__name__}"):
            return {"inputs": list(self._model.get_input_types()), "outputs": list(self._model.get_output_types())}

    async def _run(self, payload: Payload, method: Callable[..., Any], headers: Headers) -> Any:
        value: Any = payload
        for name in ("preprocess", None, "postprocess"):
            step = method if name is None else overridden_method(self._model, name)
            if step is not None:
                value = await call_method(step, value, headers)
        return value


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
