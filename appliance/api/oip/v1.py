"""Routes of the Open Inference Protocol v1: predict and explain.

Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol; the rows of several outputs
are objects, as TensorFlow Serving has them. Its object of a model is one with OpenAI's, in `api.openai`.

Requests may be CloudEvents; then responses are too, see `api.oip.cloud_events`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from litestar import Response
from litestar.enums import HttpMethod
from litestar.handlers import BaseRouteHandler, route
from litestar.params import FromPath

from appliance.api import PROTOCOL
from appliance.api.body import BodyReader, compressed
from appliance.api.disconnect import AnyRequest, StreamingResponse, before_body, cancel_on_disconnect
from appliance.api.error_responses import refuse_method, with_error_event
from appliance.api.inner_requests import Headers, inner_headers, model_headers, response_body
from appliance.api.oip.cloud_events import Event, unwrap, wrap
from appliance.api.oip.inference import authorize, run_operation
from appliance.api.oip.signatures import TextInput, choose_signature, parse_fields
from appliance.core.concurrency import off_loop
from appliance.core.errors import RequestError, UnsupportedOperationError
from appliance.core.http import may_be_json
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.core.openai_types import Json
from appliance.models.manager import ModelManager
from appliance.python_api.model_adapter import PythonModelAdapter
from appliance.tensors.codec import decode
from appliance.tensors.tensor import Tensor

_OPERATIONS = {"predict": Operation.PREDICTION, "explain": Operation.EXPLANATION}

InstanceTexts = Mapping[str, Sequence[str]]
"""The texts of one instance, by input name."""


class PredictionRequest(msgspec.Struct):
    """The body of a request: `instances`, or `inputs` by name."""

    instances: list[Any] | None = None  # Any: texts, or objects of them
    inputs: Any = None  # Any: texts, or an object of lists of them
    parameters: Json | None = None


def routes(manager: ModelManager, body_reader: BodyReader) -> list[BaseRouteHandler]:
    """Return ``POST /v1/models/NAME:predict`` and ``:explain``; GET below this path is OpenAI's."""
    methods = [HttpMethod.POST, HttpMethod.PUT, HttpMethod.PATCH, HttpMethod.DELETE, HttpMethod.OPTIONS]

    # All methods, because Litestar's own answers to others would list those of both paths.
    @route("/v1/models/{rest:path}", http_method=methods, status_code=200, opt={PROTOCOL: "oip_v1"})
    async def answer(request: AnyRequest, rest: FromPath[str]) -> Response[Any]:
        name, _, verb = rest.removeprefix("/").rpartition(":")
        operation = _OPERATIONS.get(verb) if name else None
        if operation is None or request.method != HttpMethod.POST:
            return refuse_method(request, "GET" if operation is None else "POST")
        async with before_body(request):
            authorize(manager, name, operation)
        headers = dict(request.headers)
        has_json = may_be_json(headers.get("content-type", ""))
        body = await (body_reader.json(request) if has_json else body_reader.body(request))
        event = await off_loop(len(body), unwrap, body, headers)
        if not _is_passed_on(manager, name, event):
            # Data in base64 was not checked with the body.
            await body_reader.require_shape(event.data)
        result = await cancel_on_disconnect(request, _answer(manager, name, operation, event, headers))
        added, content_type = dict[str, str](), "application/json"
        if isinstance(result, ModelResponse):
            added, content_type = model_headers(result), result.media_type
            if not isinstance(result.body, bytes):
                # As in KServe, a stream is not wrapped in an event.
                stream = with_error_event(request, result.body, are_events=False)
                return StreamingResponse(stream, media_type=content_type, headers=added)
            result = await response_body(result)
        body, media_type, event_headers = wrap(result, content_type, event, name)
        body, coding = await compressed(body, headers.get("accept-encoding", ""))
        return Response(body, media_type=media_type, headers={**added, **event_headers, **coding})

    return [answer]


def _is_passed_on(manager: ModelManager, name: str, event: Event) -> bool:
    """Return whether the data is none of JSON, and the model takes such data."""
    model = manager.find(name).model
    return isinstance(model, PythonModelAdapter) and model.passes_bytes and not may_be_json(event.content_type)


async def _answer(
    manager: ModelManager, name: str, operation: Operation, event: Event, headers: Headers
) -> bytes | ModelResponse:
    """Return the predictions, or the response of a model that speaks v1 itself."""
    operations, body = manager.find(name).model.operations, event.data
    if operation in operations and _is_passed_on(manager, name, event):
        typed = {**inner_headers(headers), "content-type": event.content_type}
        return await manager.handle(name, ModelRequest(operation, body, typed))
    request = await off_loop(len(body), decode, body, PredictionRequest)
    if operation in operations:
        return await manager.handle(name, ModelRequest(operation, body, inner_headers(headers)))
    if operation is Operation.EXPLANATION:
        raise UnsupportedOperationError(f"The model {name!r} has no explanations; ask it with :predict")
    fields = parse_fields(request.parameters or {})
    instances = _parse_instances(request)
    signature = choose_signature(operations, instances[0], (), manager.authorizer)

    async def predict(instance: InstanceTexts) -> list[Any]:  # Any: JSON values
        texts = {key: TextInput(each, (len(each),)) for key, each in instance.items()}
        return _rows(await run_operation(manager, name, signature, texts, fields, headers))

    if len(signature.inputs) == 1:
        (key,) = signature.inputs
        rows = await predict({key: [text for instance in instances for text in instance[key]]})
    else:
        rows = [await predict(instance) for instance in instances]
        rows = rows[0] if request.instances is None else rows
    return msgspec.json.encode({"predictions": rows})


def _rows(outputs: Sequence[Tensor]) -> list[Any]:  # Any: JSON values
    """Return a prediction for each text: a value or list, or an object if the model has several outputs."""
    rows = [_nested(tensor) for tensor in outputs]
    if len(rows) == 1:
        return rows[0]
    return [dict(zip([tensor.name for tensor in outputs], row, strict=True)) for row in zip(*rows, strict=True)]


def _nested(tensor: Tensor) -> list[Any]:  # Any: values, or lists of them
    values: list[Any] = list(tensor.as_json())
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
