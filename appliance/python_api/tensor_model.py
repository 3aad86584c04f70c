"""Models written in Python for clients of the Open Inference Protocol; the signatures are KServe's."""

from __future__ import annotations

import inspect
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from itertools import groupby
from typing import Any

import msgspec

from appliance.core.errors import LoadError, RequestError
from appliance.core.http import may_be_json
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.core.openai_types import Json
from appliance.core.request_context import current_context
from appliance.python_api.base_model import BasePythonModel, overridable, overridden_method
from appliance.python_api.infer_types import InferRequest, InferResponse
from appliance.python_api.responses import InvalidResultError, checked_headers, describe_type, to_json
from appliance.python_api.user_code import (
    call_method,
    code_name,
    describe_exception,
    is_stream,
    stream_items,
    user_code,
)
from appliance.tensors.codec import LENGTH_HEADER, decode, read_request, read_response, write_request, write_response
from appliance.tensors.tensor import InferenceRequest, InferenceResponse, TensorSpec, smallest_tensor

Headers = Mapping[str, str]

_Step = tuple[Callable[..., Any], tuple[Any, ...]]  # Any: users' own
"""A method, and its arguments after the value that it gets."""

METHODS: Mapping[Operation, str] = {
    Operation.INFERENCE: "predict",
    Operation.PREDICTION: "predict",
    Operation.EXPLANATION: "explain",
}
"""The method of each operation."""

Payload = InferRequest | Json | bytes
"""Tensors in version 2 of the protocol; in version 1 a JSON object such as ``{"instances": [...]}``, or a body."""


# Any throughout: a step passes what it likes to the next one, and may be asynchronous.
class Model(BasePythonModel):
    """
    A model for clients of the Open Inference Protocol: their requests go through `preprocess`, `predict` or `explain`,
    and `postprocess`, each plain, in a thread, or asynchronous.

    `headers` are those of the request, by lower-case name; a step may add others for the next one. `predict` and
    `postprocess` get a third argument `response_headers` if `return_response_headers` is set.
    """

    passes_bytes: bool = False
    """Whether bodies of the protocol's version 1 that are not JSON are passed as bytes: to the first step, and from the
    last one."""

    step_lock: threading.Lock | None = None
    """Held while plain steps run, so that those of one request run together, and of one request at a time; None runs
    those of all requests at once."""

    def __init__(self, name: str, return_response_headers: bool = False) -> None:  # noqa: FBT001, FBT002, RUF100 - KServe's
        """With `return_response_headers`, `predict` and `postprocess` get a dict for headers of the response, too."""
        super().__init__(name)
        self.required_response_headers = return_response_headers

    @overridable
    def preprocess(self, payload: Payload, headers: Headers | None = None) -> Any:  # noqa: ARG002 - to be overridden
        """Return what `predict` gets."""
        return payload

    @overridable
    def predict(self, payload: Any, headers: Headers | None = None, *args: Any, **keywords: Any) -> Any:
        """Return an `InferResponse` for an `InferRequest`, a mapping such as ``{"predictions": [...]}`` for a mapping.

        A generator streams to clients of the protocol's version 1: bytes and texts, or mappings as lines of JSON.
        """
        raise NotImplementedError

    @overridable
    def postprocess(self, result: Any, headers: Headers | None = None, *args: Any, **keywords: Any) -> Any:  # noqa: ARG002 - to be overridden
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
    response_headers: dict[str, str] = {}
    value = await _run_steps(model, request, _payload(model, request), response_headers)
    headers = checked_headers(response_headers)
    if is_inference:
        if is_stream(value):
            raise InvalidResultError("predict is a generator; only clients of /v1/models/NAME:predict take a stream")
        body, length_header = write_response(_to_message(value), prefers_binary=True)
        return ModelResponse(body, headers={**headers, **length_header})
    if is_stream(value):
        # Only the model knows what it writes.
        return ModelResponse(_stream(value), media_type="application/octet-stream", headers=headers)
    if model.passes_bytes and isinstance(value, bytes | str):
        kind, body = ("text/plain", value.encode()) if isinstance(value, str) else ("application/octet-stream", value)
        return ModelResponse(body, media_type=kind, headers=headers)
    is_bare = isinstance(value, list | tuple) or hasattr(value, "tolist")
    fields = to_json(
        {"predictions": value} if is_bare else value, 'a mapping such as {"predictions": [...]}, or a list'
    )
    return ModelResponse(msgspec.json.encode(fields), headers=headers)


def _payload(model: Model, request: ModelRequest) -> Payload:
    if request.operation is not Operation.INFERENCE:
        is_json = may_be_json(request.headers.get("content-type", ""))
        return decode(request.body, dict[str, Any]) if is_json or not model.passes_bytes else request.body
    context = current_context()
    from_grpc = context is not None and context.protocol == "oip_grpc"
    inference = read_request(request.body, request.headers.get(LENGTH_HEADER))
    return InferRequest.of(model.name, inference, from_grpc=from_grpc)


async def _run_steps(model: Model, request: ModelRequest, payload: Any, response_headers: dict[str, str]) -> Any:
    """Return the result of the steps that the model's class overrides, one after the other."""
    headers, steps = dict(request.headers), list[_Step]()
    for name in ("preprocess", METHODS[request.operation], "postprocess"):
        if (step := overridden_method(model, name)) is not None:
            has_headers = model.required_response_headers and name in {"predict", "postprocess"}
            steps.append((step, (headers, response_headers) if has_headers else (headers,)))
    value = payload
    for is_plain, group in groupby(steps, lambda each: not inspect.iscoroutinefunction(each[0])):
        if is_plain and model.step_lock is not None:
            value = await call_method(partial(_run_plain_steps, model.step_lock, list(group), value))
            continue
        for step, arguments in group:
            value = await call_method(step, value, *arguments)
    return value


def _run_plain_steps(lock: threading.Lock, steps: Sequence[_Step], value: Any) -> Any:
    """Return the result of steps that run in this thread, without those of another request between them."""
    with lock:
        for step, arguments in steps:
            with user_code(code_name(step)):
                value = step(value, *arguments)
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
        return read_response(msgspec.json.encode(_with_data(to_json(result, "an InferResponse"))))
    except InvalidResultError:
        raise
    except Exception as error:
        # What a user puts in a response of ours can break it in any way.
        raise InvalidResultError(
            f"the model returned {describe_type(result)}; must be an InferResponse: {describe_exception(error)}"
        ) from error


def _with_data(response: Json) -> Json:
    """Return a response whose outputs have `data`, also if they have `contents` as messages of gRPC do."""
    outputs = response.get("outputs")
    if not isinstance(outputs, list):
        return response
    return {**response, "outputs": [_output_with_data(each) if isinstance(each, dict) else each for each in outputs]}


def _output_with_data(output: Json) -> Json:
    contents = output.get("contents")
    if not isinstance(contents, dict) or len(contents) != 1 or "data" in output:
        return output
    (data,) = contents.values()
    return {**{name: value for name, value in output.items() if name != "contents"}, "data": data}
