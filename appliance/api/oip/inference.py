"""Inference with tensors, shared by REST and gRPC."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from appliance.api.inner_requests import (
    Headers,
    decode_response,
    inner_headers,
    model_headers,
    openai_request,
    response_body,
)
from appliance.api.oip.signatures import SIGNATURES, OperationSignature, TextInputs, choose_signature, parse_inputs
from appliance.core.concurrency import gather_limited, off_loop
from appliance.core.errors import GatewayError, RequestError, UnknownModelError
from appliance.core.model import ModelRequest, Operation
from appliance.core.openai_types import Json
from appliance.limits.queue import require_within
from appliance.models.manager import ModelManager
from appliance.models.model_status import ModelStatus
from appliance.tensors.codec import LENGTH_HEADER, read_response, write_request
from appliance.tensors.tensor import InferenceRequest, InferenceResponse, Tensor

VERSION = "1"
"""The version of every model; a config has no versions."""


def find_model(manager: ModelManager, name: str, version: str | None = None) -> ModelStatus:
    """Return the model of this name and version."""
    status = manager.find(name)
    if version not in {None, "", VERSION}:
        raise UnknownModelError(f"The model {name!r} has version {VERSION} and no other; there is no {version[:40]!r}")
    return status


def authorize(manager: ModelManager, name: str, operation: Operation) -> None:
    """Check that the current caller may use the model, and the operation if the model supports it.

    For other models, the body decides which operation is run, so the caller must be allowed one of the possible ones.
    """
    operations = manager.find(name).model.operations
    candidates = [signature.operation for signature in SIGNATURES if signature.operation in operations]
    if operation in operations:
        candidates = [operation]
    if candidates:
        manager.authorizer.require_any(candidates)


async def infer(manager: ModelManager, name: str, request: InferenceRequest, headers: Headers) -> InferenceResponse:
    """Return the named model's response to an inference request."""
    operations = manager.find(name).model.operations
    if Operation.INFERENCE in operations:
        return await _forward_tensors(manager, name, request, headers)
    texts, fields = await off_loop(sum(len(tensor.raw) for tensor in request.inputs), parse_inputs, request)
    requested = [output.name for output in request.outputs]
    signature = choose_signature(operations, texts, requested, manager.authorizer)
    outputs = await run_operation(manager, name, signature, texts, fields, headers)
    return InferenceResponse(name, VERSION, outputs, request.id)


async def run_operation(
    manager: ModelManager, name: str, signature: OperationSignature, texts: TextInputs, fields: Json, headers: Headers
) -> Sequence[Tensor]:
    """Return the output tensors of an operation; `fields` are added to the bodies of its OpenAI requests."""
    if not all(column.texts for column in texts.values()):
        raise RequestError(f"There is nothing to do: {', '.join(signature.inputs)} must have an element or more")
    if signature.operation is Operation.CHAT_COMPLETION:
        # Each text becomes a request of its own.
        count = sum(len(column.texts) for column in texts.values())
        require_within(manager.find(name).config.limits, count, 1, field="inputs")
    # An empty text counts as one.
    size = sum(len(column.texts) + sum(map(len, column.texts)) for column in texts.values())
    bodies = await off_loop(size, signature.bodies, texts)

    async def send(body: Json) -> bytes:
        request = await off_loop(
            size // len(bodies), openai_request, name, signature.operation, {**fields, **body}, headers
        )
        return await response_body(await manager.handle(name, request))

    def read() -> Sequence[Tensor]:
        return signature.tensors(texts, [decode_response(response, signature.response) for response in responses])

    responses = await gather_limited([partial(send, body) for body in bodies])
    return await off_loop(sum(map(len, responses)), read)


async def _forward_tensors(
    manager: ModelManager, name: str, request: InferenceRequest, headers: Headers
) -> InferenceResponse:
    body, length_header = write_request(request)
    model_response = await manager.handle(
        name, ModelRequest(Operation.INFERENCE, body, {**inner_headers(headers), **length_header})
    )
    body = await response_body(model_response)
    try:
        response = await off_loop(len(body), read_response, body, model_response.headers.get(LENGTH_HEADER))
    except RequestError as error:
        raise GatewayError(f"The model's answer is not what the operation gives: {error}") from error
    return InferenceResponse(
        name, VERSION, response.outputs, request.id, response.parameters, model_headers(model_response)
    )
