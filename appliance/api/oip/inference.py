"""Tensors to a model and back: what REST and gRPC share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec

from appliance.api.oip.inputs import Columns, columns_of
from appliance.api.oip.signatures import OperationSignature, choose
from appliance.core.concurrency import gather_limited, off_loop
from appliance.core.errors import GatewayError, RequestError, UnknownModelError
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.limits import require_within
from appliance.models.manager import ModelManager
from appliance.models.model_status import ModelStatus
from appliance.tensors import InferenceRequest, InferenceResponse, Tensor
from appliance.tensors.codec import LENGTH_HEADER, read_response, write_request

VERSION = "1"
"""
The version of every model: a config names one.
"""

# Of the request that was translated, not of the one it became.
_ITS_OWN = frozenset({"accept", "accept-encoding", "content-encoding", "content-length", "content-type", LENGTH_HEADER})

Answer = TypeVar("Answer")


def entry_of(manager: ModelManager, name: str, version: str | None = None) -> ModelStatus:
    """The model of this name and version.

    Raises:
        UnknownModelError: there is none.
    """
    entry = manager.find(name)
    if version not in {None, "", VERSION}:
        raise UnknownModelError(f"The model {name!r} has version {VERSION} and no other; there is no {version[:40]!r}")
    return entry


def authorize(manager: ModelManager, name: str, operation: Operation) -> None:
    """
    Return where the current caller may use the named model and, if that is what the model does, ask for the operation.

    Of a model that does something else, what is asked of it is known only once the body is read.

    Raises:
        RequestError: it may not, or there is no such model.
    """
    if operation in manager.find(name).model.operations:
        manager.access.require_operation(operation)


async def infer(
    manager: ModelManager, name: str, request: InferenceRequest, headers: Mapping[str, str]
) -> InferenceResponse:
    """Have the named model answer in tensors.

    Raises:
        RequestError: unknown model, not ready, or the request is at fault.
        EngineDeadError: the model died over it.
    """
    operations = manager.find(name).model.operations
    if Operation.INFERENCE in operations:
        return await _pass(manager, name, request, headers)
    columns = await off_loop(sum(len(tensor.raw) for tensor in request.inputs), columns_of, request)
    meaning = choose(operations, columns.texts, [output.name for output in request.outputs], manager.access)
    outputs = await ask(manager, name, meaning, columns, headers)
    return InferenceResponse(name, VERSION, outputs, request.id)


async def ask(
    manager: ModelManager, name: str, meaning: OperationSignature, columns: Columns, headers: Mapping[str, str]
) -> Sequence[Tensor]:
    """The tensors that the named model gives for these columns.

    Raises:
        RequestError: not ready, or the request is at fault.
        EngineDeadError: the model died over it.
    """
    if not all(column.texts for column in columns.texts.values()):
        raise RequestError(f"There is nothing to do: {', '.join(meaning.inputs)} must have an element or more")
    if meaning.operation is Operation.CHAT_COMPLETION:
        # Each text becomes a call of its own.
        texts = sum(len(column.texts) for column in columns.texts.values())
        require_within(manager.find(name).config.limits, texts, 1, field="inputs")
    # An element counts, even where its text is empty.
    size = sum(len(column.texts) + sum(map(len, column.texts)) for column in columns.texts.values())
    bodies = await off_loop(size, meaning.ask, columns)

    async def one(body: Mapping[str, Any]) -> bytes:  # Any: JSON values
        call = await off_loop(size // len(bodies), call_of, name, meaning.operation, body, headers)
        return await whole(await manager.handle(name, call))

    replies = await gather_limited([partial(one, body) for body in bodies])
    return await off_loop(sum(map(len, replies)), _read, meaning, columns, replies)


def _read(meaning: OperationSignature, columns: Columns, replies: Sequence[bytes]) -> Sequence[Tensor]:
    return meaning.read(columns, [_decoded(reply, meaning.reply) for reply in replies])


def call_of(
    name: str,
    operation: Operation,
    body: Mapping[str, Any],  # Any: JSON values
    headers: Mapping[str, str],
) -> ModelRequest:
    """A call of OpenAI's protocol in the name of a client that speaks another."""
    return ModelRequest(operation, msgspec.json.encode({**body, "model": name}), inner_headers(headers))


def inner_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """What of a request's headers is still so once its body is translated to JSON."""
    kept = {name: value for name, value in headers.items() if name not in _ITS_OWN}
    return {**kept, "content-type": "application/json"}


def refusal(reply: ModelResponse) -> RequestError:
    """A model's own refusal, which is in OpenAI's shape, as an error."""
    try:
        error = msgspec.json.decode(reply.body if isinstance(reply.body, bytes) else b"")["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError, RecursionError):
        text = f"The model answered with status {reply.status}"
    return RequestError(text, status=reply.status)


async def whole(reply: ModelResponse) -> bytes:
    """The body of a good answer.

    Raises:
        RequestError: it is a refusal.
        GatewayError: it is a stream, which nobody asked for.
    """
    if not isinstance(reply.body, bytes):
        await reply.body.aclose()
        raise GatewayError("The model answered with a stream that nobody asked for")
    if reply.status >= 300:
        raise refusal(reply)
    return reply.body


async def _pass(
    manager: ModelManager, name: str, request: InferenceRequest, headers: Mapping[str, str]
) -> InferenceResponse:
    body, says = write_request(request)
    reply = await manager.handle(name, ModelRequest(Operation.INFERENCE, body, {**inner_headers(headers), **says}))
    body = await whole(reply)
    try:
        response = await off_loop(len(body), read_response, body, reply.headers.get(LENGTH_HEADER))
    except RequestError as error:
        raise GatewayError(f"The model's answer is not what the operation gives: {error}") from error
    return InferenceResponse(name, VERSION, response.outputs, request.id, response.parameters)


def _decoded(body: bytes, type_: type[Answer]) -> Answer:
    try:
        return msgspec.json.decode(body, type=type_)
    except (ValueError, RecursionError) as error:
        raise GatewayError(f"The model's answer is not what the operation gives: {error}") from error
