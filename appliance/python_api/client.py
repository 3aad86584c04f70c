"""Requests and responses as objects, for models written in Python that send requests to another model."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

import msgspec
from pydantic import BaseModel, ValidationError

from appliance.adapters.service_client import decode_response, read_events
from appliance.core.errors import GatewayError
from appliance.core.model import Model, ModelRequest, Operation
from appliance.core.openai_types import Json
from appliance.python_api.openai_model import RawRequest
from appliance.python_api.types import Request

Object = TypeVar("Object", bound=BaseModel)


def request_body(request: Request, name: str) -> Json:
    """Return the fields that the client or the program has set; `name` is the default of the model."""
    return {"model": name, **request.model_dump(mode="json", exclude_unset=True)}


async def send(
    model: Model, operation: Operation, body: Json, raw_request: RawRequest | None
) -> Json | AsyncGenerator[Json]:
    """Return the response of a model, or the chunks of its stream.

    Raises:
        RequestError: the model rejects the request.
        GatewayError: the response is not JSON.
    """
    headers = {} if raw_request is None else {name.lower(): value for name, value in raw_request.headers.items()}
    response = await model.handle(ModelRequest(operation, msgspec.json.encode(body), headers))
    if not isinstance(response.body, bytes):
        return read_events(response.body, has_events=True)
    decoded = decode_response(response.status, response.body, response.headers)
    if not isinstance(decoded, dict):
        raise GatewayError("The target's response is not a JSON object")
    return decoded


async def to_chunks(chunks: AsyncGenerator[Json], class_: type[Object]) -> AsyncGenerator[Object]:
    """Yield chunks as objects; closing it closes the stream."""
    async with aclosing(chunks):
        async for chunk in chunks:
            yield to_object(chunk, class_)


def to_object(response: object, class_: type[Object]) -> Object:
    """Return a JSON value as an object."""
    try:
        return class_.model_validate(response)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in detail["loc"]) or "all of it"
        raise GatewayError(f"The target's response is not a {class_.__name__}: {field}: {detail['msg']}") from error
