"""Routes of the Open Inference Protocol v1: predict and explain.

Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol; the rows of several outputs
are objects, as TensorFlow Serving has them. Its object of a model is one with OpenAI's, in `protocols.openai`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from litestar import Response, post
from litestar.enums import HttpMethod
from litestar.exceptions import MethodNotAllowedException
from litestar.handlers import BaseRouteHandler, route
from litestar.params import FromPath

from appliance.api.compression import compressed
from appliance.api.disconnect import AnyRequest, before_body, cancel_on_disconnect
from appliance.api.error_responses import with_error_event
from appliance.api.oip.cloudevents import unwrap, wrap
from appliance.api.oip.inference import authorize, inner_headers, response_body, run_operation
from appliance.api.oip.inputs import TextInput, TextInputs, parse_fields
from appliance.api.oip.signatures import OperationSignature, choose_signature
from appliance.api.request_body import BodyReader
from appliance.api.streaming_response import StreamingResponse
from appliance.core.concurrency import off_loop
from appliance.core.errors import RequestError, UnsupportedOperationError
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.models.manager import ModelManager
from appliance.tensors import Tensor
from appliance.tensors.codec import decode

_VERBS = {"predict": Operation.PREDICTION, "explain": Operation.EXPLANATION}

InstanceTexts = Mapping[str, Sequence[str]]
"""The texts of one instance, by input name."""


class PredictionRequest(msgspec.Struct):
    """The body of a request: `instances`, or `inputs` by name."""

    instances: list[Any] | None = None  # Any: texts, or objects of them
    inputs: Any = None  # Any: texts, or an object of lists of them
    parameters: dict[str, Any] | None = None  # Any: JSON values


def routes(manager: ModelManager, body_reader: BodyReader) -> list[BaseRouteHandler]:
    """Return ``POST /v1/models/NAME:predict`` and ``:explain``."""

    @post("/v1/models/{rest:path}", name="v1-prediction", status_code=200)
    async def answer(request: AnyRequest, rest: FromPath[str]) -> Response[Any]:
        name, _, verb = rest.removeprefix("/").rpartition(":")
        if verb not in _VERBS or not name:
            raise MethodNotAllowedException(headers={"Allow": "GET"})
        async with before_body(request):
            authorize(manager, name, _VERBS[verb])
        headers = dict(request.headers)
        body = await body_reader.json(request)
        event = await off_loop(len(body), unwrap, body, headers)
        # Data in base64 was not checked with the body.
        await body_reader.require_shape(event.data)
        result = await cancel_on_disconnect(request, _answer(manager, name, _VERBS[verb], event.data, headers))
        if isinstance(result, ModelResponse) and not isinstance(result.body, bytes):
            # As in KServe, a stream is not wrapped in an event.
            return StreamingResponse(
                with_error_event(request, result.body, are_events=False), media_type=result.media_type
            )
        body, media_type, event_headers = wrap(
            await response_body(result) if isinstance(result, ModelResponse) else result, event.mode, name
        )
        body, coding = await compressed(body, headers.get("accept-encoding", ""))
        return Response(body, media_type=media_type, headers={**event_headers, **coding})

    # Litestar's own refusal would list the methods of both paths.
    @route(
        "/v1/models/{rest:path}",
        http_method=[HttpMethod.PUT, HttpMethod.PATCH, HttpMethod.DELETE],
        name="v1-refusal",
        status_code=200,
    )
    async def refuse(rest: FromPath[str]) -> None:
        raise MethodNotAllowedException(headers={"Allow": "POST" if rest.rpartition(":")[2] in _VERBS else "GET"})

    return [answer, refuse]


async def _answer(
    manager: ModelManager, name: str, operation: Operation, body: bytes, headers: Mapping[str, str]
) -> bytes | ModelResponse:
    """Return the predictions, or the response of a model that speaks v1 itself."""
    operations = manager.find(name).model.operations
    request = await off_loop(len(body), decode, body, PredictionRequest)
    if operation in operations:
        return await manager.handle(name, ModelRequest(operation, body, inner_headers(headers)))
    if operation is Operation.EXPLANATION:
        raise UnsupportedOperationError(f"The model {name!r} has no explanations; ask it with :predict")
    fields = parse_fields(request.parameters or {})
    instances = _parse_instances(request)
    signature = choose_signature(operations, {key: TextInput((), ()) for key in instances[0]}, (), manager.authorizer)
    if len(signature.inputs) == 1:
        together = {
            each: [text for instance in instances for text in instance.get(each, ())] for each in signature.inputs
        }
        return _predictions(await _rows(manager, name, signature, together, fields, headers))
    rows = [await _rows(manager, name, signature, instance, fields, headers) for instance in instances]
    return _predictions(rows[0] if request.instances is None else rows)


async def _rows(
    manager: ModelManager,
    name: str,
    signature: OperationSignature,
    instance: InstanceTexts,
    fields: Mapping[str, Any],  # Any: JSON values
    headers: Mapping[str, str],
) -> list[Any]:  # Any: JSON values
    """Return a prediction for each text: a value or list, or an object if the model has several outputs."""
    texts = {key: TextInput(each, (len(each),)) for key, each in instance.items()}
    outputs = await run_operation(manager, name, signature, TextInputs(texts, fields), headers)
    rows = [_nested(tensor) for tensor in outputs]
    if len(rows) == 1:
        return rows[0]
    return [dict(zip([tensor.name for tensor in outputs], row, strict=True)) for row in zip(*rows, strict=True)]


def _nested(tensor: Tensor) -> list[Any]:  # Any: values, or lists of them
    values: list[Any] = list(tensor.texts() if tensor.datatype == "BYTES" else tensor.values())
    for width in reversed(tensor.shape[1:]):
        values = [values[start : start + width] for start in range(0, len(values), width)]
    return values


def _parse_instances(request: PredictionRequest) -> Sequence[InstanceTexts]:
    if request.instances is not None:
        instances = [_parse_instance(each, f"instances[{number}]") for number, each in enumerate(request.instances)]
        if not instances:
            raise RequestError("instances is empty; there is nothing to predict", param="instances")
        if any(instance.keys() != instances[0].keys() for instance in instances):
            raise RequestError("The instances have different keys; all must have the same", param="instances")
        return instances
    if request.inputs is None:
        raise RequestError(
            'The body has neither instances nor inputs; it must be {"instances": [...]}', param="instances"
        )
    return [_parse_instance({"text_input": request.inputs} if _is_text(request.inputs) else request.inputs, "inputs")]


def _parse_instance(instance: object, place: str) -> InstanceTexts:
    if isinstance(instance, str):
        return {"text_input": [instance]}
    if isinstance(instance, dict) and instance and all(_is_text(value) for value in instance.values()):
        return {key: [value] if isinstance(value, str) else value for key, value in instance.items()}
    raise RequestError(
        f"{place} is neither a text nor an object of texts by the names of the model's inputs", param=place
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def _predictions(rows: list[Any]) -> bytes:  # Any: JSON values
    return msgspec.json.encode({"predictions": rows})
