"""Models written in Python that take tensors: the Open Inference Protocol's clients ask them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.python_api.base_model import BasePythonModel, offered, overridden
from appliance.python_api.infer_types import InferRequest, InferResponse
from appliance.python_api.invoke import called, is_stream, items
from appliance.python_api.serialization import Json, ModelFaultError, kind_of, plain
from appliance.python_api.user_code import reason_of, user_code
from appliance.tensors import InferenceResponse
from appliance.tensors.codec import LENGTH_HEADER, decode, read_request, read_response, write_response

Payload = InferRequest | Json
"""
What is asked: tensors in the protocol's second version, a JSON object such as ``{"instances": [...]}`` in its first.
"""

Headers = Mapping[str, str]

_METHODS: Mapping[Operation, str] = {
    Operation.INFERENCE: "predict",
    Operation.PREDICTION: "predict",
    Operation.EXPLANATION: "explain",
}

OF_TENSORS = frozenset(_METHODS)
"""
What a model of tensors can be asked.
"""


# Any throughout: a step gives the next one what it likes, and may be asynchronous.
class Model(BasePythonModel):
    """
    A model for clients of the Open Inference Protocol: what they ask goes through `preprocess`, `predict` or `explain`,
    and `postprocess`, each plain, in a thread, or asynchronous.
    """

    @offered
    def preprocess(self, payload: Payload, headers: Headers | None = None) -> Any:  # noqa: ARG002 - to be overridden
        """What `predict` gets."""
        return payload

    @offered
    def predict(self, payload: Any, headers: Headers | None = None) -> Any:
        """An `InferResponse` for an `InferRequest`, a mapping such as ``{"predictions": [...]}`` for a mapping.

        A generator streams to clients of the protocol's first version: bytes and texts, or mappings as lines of JSON.
        """
        raise NotImplementedError

    @offered
    def postprocess(self, result: Any, headers: Headers | None = None) -> Any:  # noqa: ARG002 - to be overridden
        """What the client gets."""
        return result

    @offered
    def explain(self, payload: Any, headers: Headers | None = None) -> Any:
        """The same for a mapping and its explanation."""
        raise NotImplementedError

    def get_input_types(self) -> Sequence[Mapping[str, Any]]:
        """The inputs that metadata names: ``{"name", "datatype", "shape"}`` of each."""
        return ()

    def get_output_types(self) -> Sequence[Mapping[str, Any]]:
        """The outputs, likewise."""
        return ()


class Steps:
    """Has a `Model` answer calls in tensors, and in the JSON of the protocol's first version."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.operations = frozenset(each for each, name in _METHODS.items() if overridden(model, name))

    async def handle(self, call: ModelRequest) -> ModelResponse:
        """The reply to a call.

        Raises:
            CallError: the call is at fault.
            ModelFaultError: what the model returned is no answer.
        """
        method = getattr(self._model, _METHODS[call.operation])
        if call.operation is Operation.INFERENCE:
            request = read_request(call.body, call.headers.get(LENGTH_HEADER))
            said = await self._walk(InferRequest.of(self._model.name, request), method, call.headers)
            if is_stream(said):
                raise ModelFaultError("predict is a generator; only clients of /v1/models/NAME:predict take a stream")
            body, says = write_response(_message(said), prefers_binary=True)
            return ModelResponse(body, headers=says)
        said = await self._walk(decode(call.body, dict[str, Any]), method, call.headers)
        if is_stream(said):
            # Nobody but the model knows what it writes.
            return ModelResponse(_written(said), media_type="application/octet-stream")
        return ModelResponse(msgspec.json.encode(_predictions(said)))

    def describe(self) -> Mapping[str, Any]:
        """The inputs and outputs, for metadata."""
        with user_code(f"the types of {type(self._model).__name__}"):
            return {"inputs": list(self._model.get_input_types()), "outputs": list(self._model.get_output_types())}

    async def _walk(self, payload: Payload, method: Callable[..., Any], headers: Headers) -> Any:
        before, after = overridden(self._model, "preprocess"), overridden(self._model, "postprocess")
        given: Any = payload
        for step in (before, method, after):
            if step is not None:
                given = await called(step, given, headers)
        return given


async def _written(stream: Any) -> AsyncGenerator[bytes]:
    """The items of a stream: bytes and texts as they are, anything else as a line of JSON."""
    async with aclosing(items(stream)) as yielded:
        async for item in yielded:
            if isinstance(item, bytes | str):
                yield item if isinstance(item, bytes) else item.encode()
            else:
                yield msgspec.json.encode(plain(item)) + b"\n"


def _message(said: Any) -> InferenceResponse:
    """The tensors of an answer, which may be a mapping in the protocol's own shape."""
    try:
        return said.message if isinstance(said, InferResponse) else read_response(msgspec.json.encode(plain(said)))
    except ModelFaultError:
        raise
    except Exception as error:
        # What a user puts in an answer of ours can break it in any way.
        raise ModelFaultError(
            f"the model returned {kind_of(said)}, which is no InferResponse: {reason_of(error)}"
        ) from error


def _predictions(said: Any) -> Json:
    is_bare = isinstance(said, list | tuple) or hasattr(said, "tolist")
    return plain({"predictions": said} if is_bare else said)
