"""Requests and responses as objects, for models written in Python that send requests to another model."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

import msgspec
from pydantic import BaseModel, ValidationError

from appliance.adapters.service_client import decode_response, read_events, require_object
from appliance.core.errors import GatewayError
from appliance.core.model import Model, ModelRequest, Operation
from appliance.core.openai_types import Json
from appliance.python_api.raw_request import RawRequest
from appliance.python_api.types import Request

Object = TypeVar("Object", bound=BaseModel)
Chunk = TypeVar("Chunk", bound=BaseModel)


def request_body(request: Request, name: str) -> Json:
    """Return the fields that the client or the program has set; `name` is the default of the model."""
    return {"model": name, **request.model_dump(mode="json", exclude_unset=True)}


async def send(
    model: Model, operation: Operation, body: Json, raw_request: RawRequest | None
) -> Json | AsyncGenerator[Json]:
    """Return the response of a model, or the chunks of its stream."""
    headers = {} if raw_request is None else {name.lower(): value for name, value in raw_request.headers.items()}
    response = await model.handle(ModelRequest(operation, msgspec.json.encode(body), headers))
    if not isinstance(response.body, bytes):
        return read_events(response.body, has_events=True)
    return require_object(decode_response(response.status, response.body, response.headers))


def to_objects(
    response: Json | AsyncGenerator[Json], response_class: type[Object], chunk_class: type[Chunk]
) -> Object | AsyncGenerator[Chunk]:
    """Return a response, or the chunks of a stream, as objects; closing the chunks closes the stream."""
    return to_object(response, response_class) if isinstance(response, dict) else _to_chunks(response, chunk_class)


def to_object(response: object, class_: type[Object]) -> Object:
    """Return a JSON value as an object."""
    try:
        return class_.model_validate(response)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in detail["loc"]) or "all of it"
        raise GatewayError(f"The target's response is not a {class_.__name__}: {field}: {detail['msg']}") from error


async def _to_chunks(chunks: AsyncGenerator[Json], class_: type[Chunk]) -> AsyncGenerator[Chunk]:
    async with aclosing(chunks):
        async for chunk in chunks:
            yield to_object(chunk, class_)
