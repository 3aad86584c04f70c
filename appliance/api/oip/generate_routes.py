"""One text to one text, whole or as it comes.

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
from appliance.api.oip.inference import VERSION, ask, call_of, refusal
from appliance.api.oip.inputs import Column, Columns, fields_of
from appliance.api.oip.signatures import OperationSignature, usual
from appliance.api.request_body import BodyReader
from appliance.api.streaming_response import StreamingResponse
from appliance.core import sse
from appliance.core.concurrency import off_loop
from appliance.core.errors import GatewayError, RequestError, UnsupportedOperationError
from appliance.core.model import ModelResponse, Operation
from appliance.models.manager import ModelManager
from appliance.tensors.codec import decode

_UNBUFFERED: Mapping[str, str] = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

# As much of a model's answer as adapters hold.
_MAX_EVENT_BYTES = 128 * 1024 * 1024

_NOT_FIELDS = frozenset({"text_input", "parameters", "id"})


@dataclass(frozen=True, slots=True)
class _Question:
    columns: Columns
    says: Mapping[str, Any]
    """What every answer to it begins with."""


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    error: Any = None  # Any: as the model's server has it


async def whole_text(manager: ModelManager, request: AnyRequest, name: str, intake: BodyReader) -> Response[Any]:
    """``{"text_input", "parameters"}`` to ``{"model_name", "model_version", "text_output"}``."""
    async with before_body(request):
        meaning = _meaning(manager, name)
    body = await intake.json(request)
    question = await off_loop(len(body), _question, body, name)
    (tensor,) = await cancel_on_disconnect(
        request, ask(manager, name, meaning, question.columns, dict(request.headers))
    )
    texts = tensor.texts()
    return Response({**question.says, "text_output": texts[0] if len(texts) == 1 else texts})


async def streamed_text(manager: ModelManager, request: AnyRequest, name: str, intake: BodyReader) -> Response[Any]:
    """The same as server-sent events, each with what is new."""
    async with before_body(request):
        meaning = _meaning(manager, name)
    body = await intake.json(request)
    question = await off_loop(len(body), _question, body, name)
    (fields,) = meaning.ask(question.columns)
    call = call_of(name, meaning.operation, {**fields, "stream": True}, dict(request.headers))
    reply = await cancel_on_disconnect(request, manager.handle(name, replace(call, is_streamed=True)))
    if reply.status >= 300:
        raise refusal(reply)
    events = error_responses.with_error_event(request, _events(reply, question.says))
    return StreamingResponse(events, media_type=sse.MEDIA_TYPE, headers=dict(_UNBUFFERED))


def _meaning(manager: ModelManager, name: str) -> OperationSignature:
    meaning = usual(manager.find(name).model.operations, manager.access)
    if meaning.operation not in {Operation.COMPLETION, Operation.CHAT_COMPLETION}:
        raise UnsupportedOperationError(f"The model {name!r} generates no text; ask it with infer")
    manager.access.require_operation(meaning.operation)
    return meaning


def _question(body: bytes, name: str) -> _Question:
    asked = decode(body, dict[str, Any])
    text, parameters = asked.get("text_input"), asked.get("parameters", {})
    if not isinstance(text, str):
        raise RequestError(
            "text_input is missing, or is no text; it is what the model goes on from", param="text_input"
        )
    if not isinstance(parameters, dict):
        raise RequestError('parameters must be an object, such as {"max_tokens": 20}', param="parameters")
    says: dict[str, Any] = {"model_name": name, "model_version": VERSION}
    if asked.get("id") is not None:
        says["id"] = asked["id"]
    # Clients of Triton have the parameters beside the text.
    beside = {key: value for key, value in asked.items() if key not in _NOT_FIELDS}
    fields = {key: value for key, value in {**beside, **parameters}.items() if key != "stream"}
    return _Question(Columns({"text_input": Column([text], (1,))}, fields_of(fields)), says)


async def _events(reply: ModelResponse, says: Mapping[str, Any]) -> AsyncGenerator[bytes]:  # Any: JSON values
    """A stream of OpenAI's as one of the Open Inference Protocol's.

    Raises:
        GatewayError: it holds an error, or nothing that can be read.
    """
    if isinstance(reply.body, bytes):
        raise GatewayError("The model answered at once where a stream was asked for")
    async with aclosing(sse.read_events(reply.body, _MAX_EVENT_BYTES)) as events:
        async for data in events:
            for choice in _choices(data):
                text = (choice.delta.content if choice.delta else choice.text) or ""
                yield sse.event(json.dumps({**says, "text_output": text}).encode())


def _choices(data: bytes) -> Sequence[_Choice]:
    if data.strip() == sse.DONE:
        return ()
    try:
        chunk = msgspec.json.decode(data, type=_Chunk)
    except (ValueError, RecursionError) as error:
        raise GatewayError(f"The model's stream is not what the operation gives: {error}") from error
    if chunk.error is not None:
        raise refusal(ModelResponse(data, status=502))
    return chunk.choices
