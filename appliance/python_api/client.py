"""Requests as objects asked of a model of the contract, and its answers as objects."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

import msgspec
from pydantic import BaseModel, ValidationError

from appliance.adapters.http_client import decoded, events
from appliance.core.errors import GatewayError
from appliance.core.model import Model, ModelRequest, Operation
from appliance.python_api.openai_model import RawRequest
from appliance.python_api.request_types import Request
from appliance.python_api.serialization import Json

Made = TypeVar("Made", bound=BaseModel)


def body_of(request: Request, name: str) -> Json:
    """The fields that the client or the program has set, and a name for the model."""
    return {"model": name, **request.model_dump(mode="json", exclude_unset=True)}


async def asked(
    model: Model, operation: Operation, body: Json, raw_request: RawRequest | None
) -> Json | AsyncGenerator[Json]:
    """The answer, or its chunks.

    Raises:
        CallError: the model refuses.
        GatewayError: its answer is none.
    """
    headers = {} if raw_request is None else {name.lower(): value for name, value in raw_request.headers.items()}
    reply = await model.handle(ModelRequest(operation, msgspec.json.encode(body), headers))
    if not isinstance(reply.body, bytes):
        return events(reply.body, is_sse=True)
    said = decoded(reply.status, reply.body)
    if not isinstance(said, dict):
        raise GatewayError("The target's answer is no JSON object")
    return said


async def chunks(said: AsyncGenerator[Json], kind: type[Made]) -> AsyncGenerator[Made]:
    """The chunks as objects.

    Raises:
        GatewayError: one is no chunk.
    """
    async with aclosing(said):
        async for chunk in said:
            yield made(kind, chunk)


def made(kind: type[Made], said: object) -> Made:
    """What was said as an object.

    Raises:
        GatewayError: it is no such object.
    """
    try:
        return kind.model_validate(said)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in fault["loc"]) or "all of it"
        raise GatewayError(f"The target's answer is no {kind.__name__}: {place}: {fault['msg']}") from error
