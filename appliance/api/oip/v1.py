"""The routes of the Open Inference Protocol's first version: predictions and explanations.

Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol; the rows of several outputs
are objects, as TensorFlow Serving has them. Its object of a model is one with OpenAI's, in `protocols.openai`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from litestar import Response, post
from litestar.exceptions import MethodNotAllowedException
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath

from appliance.api.compression import compressed
from appliance.api.disconnect import AnyRequest, before_body, cancel_on_disconnect
from appliance.api.error_responses import with_error_event
from appliance.api.oip.cloudevents import opened, sealed
from appliance.api.oip.inference import ask, authorize, inner_headers, whole
from appliance.api.oip.inputs import Column, Columns, fields_of
from appliance.api.oip.signatures import OperationSignature, choose
from appliance.api.request_body import BodyReader
from appliance.api.streaming_response import StreamingResponse
from appliance.core.concurrency import off_loop
from appliance.core.errors import RequestError, UnsupportedOperationError
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.models.manager import ModelManager
from appliance.tensors import Tensor
from appliance.tensors.codec import decode

_VERBS = {"predict": Operation.PREDICTION, "explain": Operation.EXPLANATION}

Texts = Mapping[str, Sequence[str]]
"""
The texts of one question, by the names of the model's inputs.
"""


class _Request(msgspec.Struct):
    instances: list[Any] | None = None  # Any: texts, or objects of them
    inputs: Any = None  # Any: texts, or an object of lists of them
    parameters: dict[str, Any] | None = None  # Any: JSON values


def routes(manager: ModelManager, intake: BodyReader) -> list[BaseRouteHandler]:
    """``POST /v1/models/NAME:predict`` and ``:explain``."""

    @post("/v1/models/{rest:path}", name="v1-prediction", status_code=200)
    async def answer(request: AnyRequest, rest: FromPath[str]) -> Response[Any]:
        name, _, verb = rest.removeprefix("/").rpartition(":")
        if verb not in _VERBS or not name:
            raise MethodNotAllowedException(headers={"Allow": "GET"})
        async with before_body(request):
            authorize(manager, name, _VERBS[verb])
        headers = dict(request.headers)
        body = await intake.json(request)
        event = await off_loop(len(body), opened, body, headers)
        # What an event holds in base64 was not seen yet.
        await intake.require_shape(event.data)
        made = await cancel_on_disconnect(request, _answer(manager, name, _VERBS[verb], event.data, headers))
        if isinstance(made, ModelResponse) and not isinstance(made.body, bytes):
            # As KServe does: a stream is no event.
            return StreamingResponse(with_error_event(request, made.body, are_events=False), media_type=made.media_type)
        body, kind, says = sealed(await whole(made) if isinstance(made, ModelResponse) else made, event.mode, name)
        body, coding = await compressed(body, headers.get("accept-encoding", ""))
        return Response(body, media_type=kind, headers={**says, **coding})

    return [answer]


async def _answer(
    manager: ModelManager, name: str, operation: Operation, body: bytes, headers: Mapping[str, str]
) -> bytes | ModelResponse:
    """The answer in the protocol's first version, or the reply of a model that speaks it itself."""
    operations = manager.find(name).model.operations
    request = await off_loop(len(body), decode, body, _Request)
    if operation in operations:
        return await manager.handle(name, ModelRequest(operation, body, inner_headers(headers)))
    if operation is Operation.EXPLANATION:
        raise UnsupportedOperationError(f"The model {name!r} has no explanations; ask it with :predict")
    fields = fields_of(request.parameters or {})
    questions = _questions(request)
    meaning = choose(operations, {key: Column((), ()) for key in questions[0]}, (), manager.access)
    if len(meaning.inputs) == 1:
        together = {
            each: [text for question in questions for text in question.get(each, ())] for each in meaning.inputs
        }
        return _written(await _rows(manager, name, meaning, together, fields, headers))
    rows = [await _rows(manager, name, meaning, question, fields, headers) for question in questions]
    return _written(rows[0] if request.instances is None else rows)


async def _rows(
    manager: ModelManager,
    name: str,
    meaning: OperationSignature,
    question: Texts,
    fields: Mapping[str, Any],  # Any: JSON values
    headers: Mapping[str, str],
) -> list[Any]:  # Any: JSON values
    """
    A prediction for each text: a value or list where the model has one output, an object of them where it has several.
    """
    texts = {key: Column(each, (len(each),)) for key, each in question.items()}
    outputs = await ask(manager, name, meaning, Columns(texts, fields), headers)
    rows = [_nested(tensor) for tensor in outputs]
    if len(rows) == 1:
        return rows[0]
    return [dict(zip([tensor.name for tensor in outputs], row, strict=True)) for row in zip(*rows, strict=True)]


def _nested(tensor: Tensor) -> list[Any]:  # Any: values, or lists of them
    values: list[Any] = list(tensor.texts() if tensor.datatype == "BYTES" else tensor.values())
    for width in reversed(tensor.shape[1:]):
        values = [values[start : start + width] for start in range(0, len(values), width)]
    return values


def _questions(request: _Request) -> Sequence[Texts]:
    if request.instances is not None:
        questions = [_question(each, f"instances[{number}]") for number, each in enumerate(request.instances)]
        if not questions:
            raise RequestError("instances is empty; there is nothing to predict", param="instances")
        if any(question.keys() != questions[0].keys() for question in questions):
            raise RequestError("The instances have different keys; all must have the same", param="instances")
        return questions
    if request.inputs is None:
        raise RequestError(
            'The body has neither instances nor inputs; it must be {"instances": [...]}', param="instances"
        )
    return [_question({"text_input": request.inputs} if _is_text(request.inputs) else request.inputs, "inputs")]


def _question(instance: object, place: str) -> Texts:
    if isinstance(instance, str):
        return {"text_input": [instance]}
    if isinstance(instance, dict) and instance and all(_is_text(value) for value in instance.values()):
        return {key: [value] if isinstance(value, str) else value for key, value in instance.items()}
    raise RequestError(
        f"{place} is neither a text nor an object of texts by the names of the model's inputs", param=place
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def _written(rows: list[Any]) -> bytes:  # Any: JSON values
    return msgspec.json.encode({"predictions": rows})
