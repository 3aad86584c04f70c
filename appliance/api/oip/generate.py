"""The generate extension: one text to one text, as a whole or as a stream.

Source: https://github.com/kserve/open-inference-protocol, specification/protocol/generate_rest.yaml, and Triton's
generate extension (https://github.com/triton-inference-server/server, protocol/extension_generate.md).
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from litestar import Response

from appliance.api import error_responses
from appliance.api.disconnect import AnyRequest, before_body, cancel_on_disconnect
from appliance.api.oip.inference import VERSION, error_of_response, openai_request, run_operation
from appliance.api.oip.inputs import TextInput, TextInputs, parse_fields
from appliance.api.oip.signatures import OperationSignature, default_signature
from appliance.api.request_body import BodyReader
from appliance.api.streaming_response import StreamingResponse
from appliance.core import sse
from appliance.core.concurrency import off_loop
from appliance.core.errors import GatewayError, RequestError, UnsupportedOperationError
from appliance.core.model import ModelResponse, Operation
from appliance.core.openai_types import Json
from appliance.models.manager import ModelManager
from appliance.tensors.codec import decode

_UNBUFFERED: Mapping[str, str] = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

# As for responses of adapters' targets.
_MAX_EVENT_BYTES = 128 * 1024 * 1024

_NOT_FIELDS = frozenset({"text_input", "parameters", "id"})


class GenerateRequest(msgspec.Struct):
    """The body of a request; sampling parameters may stand in `parameters` or beside it."""

    text_input: str
    parameters: Json = {}
    id: Any = None  # Any: returned unchanged


class GenerateResponse(msgspec.Struct, kw_only=True):
    """The body of a response, or of an event of a stream; `text_output` is a list if several texts are requested."""

    model_name: str
    model_version: str
    id: Any = None  # Any: as requested
    text_output: str | list[str]


@dataclass(frozen=True, slots=True)
class _ParsedRequest:
    text_inputs: TextInputs
    base: Mapping[str, Any]
    """Fields of every response."""


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    error: Any = None  # Any: as the model's server has it


async def generate_text(
    manager: ModelManager, request: AnyRequest, name: str, body_reader: BodyReader
) -> Response[Any]:
    """``{"text_input", "parameters"}`` to ``{"model_name", "model_version", "text_output"}``."""
    async with before_body(request):
        signature = _text_signature(manager, name)
    body = await body_reader.json(request)
    generate_request = await off_loop(len(body), _parse, body, name)
    (tensor,) = await cancel_on_disconnect(
        request, run_operation(manager, name, signature, generate_request.text_inputs, dict(request.headers))
    )
    texts = tensor.texts()
    return Response({**generate_request.base, "text_output": texts[0] if len(texts) == 1 else texts})


async def stream_text(manager: ModelManager, request: AnyRequest, name: str, body_reader: BodyReader) -> Response[Any]:
    """The same as server-sent events, each with the new part of the text."""
    async with before_body(request):
        signature = _text_signature(manager, name)
    body = await body_reader.json(request)
    generate_request = await off_loop(len(body), _parse, body, name)
    (fields,) = signature.bodies(generate_request.text_inputs)
    model_request = openai_request(name, signature.operation, {**fields, "stream": True}, dict(request.headers))
    response = await cancel_on_disconnect(request, manager.handle(name, replace(model_request, is_streamed=True)))
    if response.status >= 300:
        raise error_of_response(response)
    events = error_responses.with_error_event(request, _events(response, generate_request.base))
    return StreamingResponse(events, media_type=sse.MEDIA_TYPE, headers=dict(_UNBUFFERED))


def _text_signature(manager: ModelManager, name: str) -> OperationSignature:
    signature = default_signature(manager.find(name).model.operations, manager.authorizer)
    if signature.operation not in {Operation.COMPLETION, Operation.CHAT_COMPLETION}:
        raise UnsupportedOperationError(f"The model {name!r} generates no text; ask it with infer")
    manager.authorizer.require_operation(signature.operation)
    return signature


def _parse(body: bytes, name: str) -> _ParsedRequest:
    fields_ = decode(body, dict[str, Any])
    text, parameters = fields_.get("text_input"), fields_.get("parameters", {})
    if not isinstance(text, str):
        raise RequestError(
            "text_input is missing, or is no text; it is what the model goes on from", param="text_input"
        )
    if not isinstance(parameters, dict):
        raise RequestError('parameters must be an object, such as {"max_tokens": 20}', param="parameters")
    base: dict[str, Any] = {"model_name": name, "model_version": VERSION}
    if fields_.get("id") is not None:
        base["id"] = fields_["id"]
    # Triton's clients send parameters beside the text.
    beside = {key: value for key, value in fields_.items() if key not in _NOT_FIELDS}
    fields = {key: value for key, value in {**beside, **parameters}.items() if key != "stream"}
    return _ParsedRequest(TextInputs({"text_input": TextInput([text], (1,))}, parse_fields(fields)), base)


async def _events(response: ModelResponse, base: Mapping[str, Any]) -> AsyncGenerator[bytes]:  # Any: JSON values
    """Convert an OpenAI stream to one of the Open Inference Protocol.

    Raises:
        GatewayError: the stream has an error, or is not an OpenAI stream.
    """
    if isinstance(response.body, bytes):
        raise GatewayError("The model answered at once where a stream was asked for")
    async with aclosing(sse.read_events(response.body, _MAX_EVENT_BYTES)) as events:
        async for data in events:
            for choice in _choices(data):
                text = (choice.delta.content if choice.delta else choice.text) or ""
                yield sse.event(json.dumps({**base, "text_output": text}).encode())


def _choices(data: bytes) -> Sequence[_Choice]:
    if data.strip() == sse.DONE:
        return ()
    try:
        chunk = msgspec.json.decode(data, type=_Chunk)
    except (ValueError, RecursionError) as error:
        raise GatewayError(f"The model's stream is not what the operation gives: {error}") from error
    if chunk.error is not None:
        raise error_of_response(ModelResponse(data, status=502))
    return chunk.choices
