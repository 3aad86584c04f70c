"""Requests of the OpenAI protocol on behalf of clients of other protocols, and what models answer to them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, TypeVar

import msgspec

from appliance.adapters.service_client import read_events
from appliance.core.errors import GatewayError, RequestError
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.core.openai_types import Json
from appliance.tensors.codec import LENGTH_HEADER

Headers = Mapping[str, str]

Decoded = TypeVar("Decoded")

# Headers that describe the original body, not the translated one.
_BODY_HEADERS = frozenset(
    {"accept", "accept-encoding", "content-encoding", "content-length", "content-type", LENGTH_HEADER}
)


def openai_request(name: str, operation: Operation, body: Json, headers: Headers) -> ModelRequest:
    """Return a request of the OpenAI protocol on behalf of a client of another protocol."""
    return ModelRequest(operation, msgspec.json.encode({**body, "model": name}), inner_headers(headers))


def inner_headers(headers: Headers) -> dict[str, str]:
    """Return the headers that remain valid after the body was translated to JSON."""
    kept = {name: value for name, value in headers.items() if name not in _BODY_HEADERS}
    return {**kept, "content-type": "application/json"}


def error_of_response(response: ModelResponse) -> RequestError:
    """Return the error in a model's OpenAI response."""
    try:
        error = msgspec.json.decode(response.body if isinstance(response.body, bytes) else b"")["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError, RecursionError):
        text = f"The model answered with status {response.status}"
    return RequestError(text, status=response.status, headers=model_headers(response))


async def response_body(response: ModelResponse) -> bytes:
    """Return the body of a successful response."""
    if not isinstance(response.body, bytes):
        await response.body.aclose()
        raise GatewayError("The model answered with a stream that nobody asked for")
    if response.status >= 300:
        raise error_of_response(response)
    return response.body


def response_events(response: ModelResponse) -> AsyncGenerator[Any]:  # Any: JSON values
    """Return the JSON of each event of a successful stream; closing it closes the stream."""
    if response.status >= 300:
        raise error_of_response(response)
    if isinstance(response.body, bytes):
        raise GatewayError("The model answered at once where a stream was asked for")
    return read_events(response.body, has_events=True)


def model_headers(response: ModelResponse) -> dict[str, str]:
    """Return the headers that a model adds, without those that describe its body, which is encoded anew."""
    return {name: value for name, value in response.headers.items() if name not in _BODY_HEADERS}


def decode_response(body: bytes, type_: type[Decoded]) -> Decoded:
    """Decode the body of a model's response."""
    try:
        return msgspec.json.decode(body, type=type_)
    except (ValueError, RecursionError) as error:
        raise GatewayError(f"The model's answer is not what the operation gives: {error}") from error


def convert_event(event: Any, type_: type[Decoded]) -> Decoded:  # Any: JSON values
    """Return an event of a model's stream as a type."""
    try:
        return msgspec.convert(event, type_)
    except ValueError as error:
        raise GatewayError(f"The model's stream is not what the operation gives: {error}") from error
