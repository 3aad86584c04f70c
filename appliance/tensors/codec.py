"""Encode and decode inference requests and responses: JSON, followed by the bytes of tensors sent as binary data.

Source: https://github.com/kserve/open-inference-protocol, "Inference Request JSON Object", and Triton's binary tensor
data extension (https://github.com/triton-inference-server/server, protocol/extension_binary_data.md).

What is wrong with a body is raised as a `RequestError`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from appliance.core.errors import RequestError
from appliance.tensors.datatype import JSON_TYPES
from appliance.tensors.tensor import InferenceRequest, InferenceResponse, RequestedOutput, Tensor

LENGTH_HEADER = "inference-header-content-length"
"""The header with the number of bytes of JSON at the start of a body; without it, all of the body is JSON."""

Decoded = TypeVar("Decoded")

BINARY_SIZE = "binary_data_size"

_Parameters = dict[str, Any] | None  # Any: JSON values


class TensorBody(msgspec.Struct, omit_defaults=True):
    """A tensor; its data is nested or flat lists, or follows the JSON as binary data."""

    name: str
    datatype: str
    shape: Sequence[int]
    parameters: _Parameters = None
    data: Any = None  # Any: lists within lists


class OutputBody(msgspec.Struct, omit_defaults=True):
    """A requested output."""

    name: str
    parameters: _Parameters = None


class InferenceRequestBody(msgspec.Struct, omit_defaults=True):
    """The JSON of a request."""

    inputs: list[TensorBody]
    id: str | None = None
    parameters: _Parameters = None
    outputs: list[OutputBody] | None = None


class InferenceResponseBody(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The JSON of a response."""

    model_name: str = ""
    model_version: str | None = None
    id: str | None = None
    parameters: _Parameters = None
    outputs: list[TensorBody]


def read_request(body: bytes, length: str | None = None) -> InferenceRequest:
    """Decode a request; `length` is the value of `LENGTH_HEADER`."""
    request, binary = _split(body, length, InferenceRequestBody)
    outputs = tuple(RequestedOutput(output.name, output.parameters or {}) for output in request.outputs or ())
    return InferenceRequest(_tensors(request.inputs, binary), request.id, outputs, request.parameters or {})


def write_request(request: InferenceRequest) -> tuple[bytes, dict[str, str]]:
    """Encode a request with all tensors as binary data; return the body and its headers."""
    inputs = [_body(tensor, is_binary=True) for tensor in request.inputs]
    outputs = [OutputBody(output.name, dict(output.parameters)) for output in request.outputs]
    body = InferenceRequestBody(inputs, request.id, dict(request.parameters), outputs)
    return _join(body, request.inputs)


def read_response(body: bytes, length: str | None = None) -> InferenceResponse:
    """Decode a response; `length` is the value of `LENGTH_HEADER`."""
    response, binary = _split(body, length, InferenceResponseBody)
    tensors = _tensors(response.outputs, binary)
    return InferenceResponse(
        response.model_name, response.model_version, tensors, response.id, response.parameters or {}
    )


def write_response(
    response: InferenceResponse, requested: Sequence[RequestedOutput] = (), *, prefers_binary: bool = False
) -> tuple[bytes, dict[str, str]]:
    """Encode a response with the requested outputs, as JSON or binary data as requested; return body and headers."""
    tensors = response.select(requested)
    wanted = {output.name: output.parameters.get("binary_data") for output in requested}
    binary = {
        tensor.name
        for tensor in tensors
        if (prefers_binary if wanted.get(tensor.name) is None else wanted[tensor.name] is True)
    }
    body = InferenceResponseBody(
        model_name=response.model_name,
        model_version=response.model_version,
        id=response.id,
        parameters=dict(response.parameters) or None,
        outputs=[_body(tensor, is_binary=tensor.name in binary) for tensor in tensors],
    )
    return _join(body, [tensor for tensor in tensors if tensor.name in binary])


def decode(body: bytes, type_: type[Decoded]) -> Decoded:
    """Decode JSON as `type_`."""
    try:
        return msgspec.json.decode(body, type=type_)
    except msgspec.ValidationError as error:
        # With JSON's words for types.
        message = re.sub(r"`(\w+)`", lambda found: JSON_TYPES.get(found[1], found[0]), str(error))
        raise RequestError(f"The body is not a request: {message}") from error
    except RecursionError as error:
        raise RequestError("The body is nested too deeply", code="invalid_json") from error
    except ValueError as error:
        raise RequestError(f"The body is not valid JSON: {error}", code="invalid_json") from error


def _split(body: bytes, length: str | None, type_: type[Decoded]) -> tuple[Decoded, bytes]:
    """Return the decoded JSON at the start of a body, and the bytes after it."""
    if length is None:
        return decode(body, type_), b""
    if not (length.isascii() and length.isdecimal() and len(length) <= 20 and int(length) <= len(body)):
        raise RequestError(
            f"Inference-Header-Content-Length must be the number of bytes of JSON at the start of the body, which has "
            f"{len(body)} bytes, and is {length[:40]!r}"
        )
    return decode(body[: int(length)], type_), body[int(length) :]


def _tensors(bodies: Sequence[TensorBody], binary: bytes) -> list[Tensor]:
    tensors, offset = [], 0
    for each in bodies:
        parameters = dict(each.parameters or {})
        size = parameters.pop(BINARY_SIZE, None)
        if size is None:
            tensor = Tensor.of_nested(each.name, each.datatype, each.shape, each.data)
        else:
            if type(size) is not int or size < 0 or offset + size > len(binary):
                raise RequestError(
                    f"The tensor {each.name!r} has {BINARY_SIZE} {size!r:.40}, and {len(binary) - offset} bytes are "
                    "left in the body"
                )
            if each.data is not None:
                raise RequestError(
                    f"The tensor {each.name!r} has both data and {BINARY_SIZE}; it must have one of them"
                )
            tensor = Tensor.of_raw(each.name, each.datatype, each.shape, binary[offset : offset + size])
            offset += size
        tensors.append(replace(tensor, parameters=parameters) if parameters else tensor)
    if offset < len(binary):
        raise RequestError(f"The body has {len(binary) - offset} bytes more than its tensors say")
    return tensors


def _body(tensor: Tensor, *, is_binary: bool) -> TensorBody:
    parameters = {**tensor.parameters, **({BINARY_SIZE: len(tensor.raw)} if is_binary else {})}
    data = None if is_binary else tensor.as_json()
    return TensorBody(tensor.name, tensor.datatype, tensor.shape, parameters or None, data)


def _join(body: msgspec.Struct, tensors: Sequence[Tensor]) -> tuple[bytes, dict[str, str]]:
    written = msgspec.json.encode(body)
    if not tensors:
        return written, {}
    return b"".join((written, *(tensor.raw for tensor in tensors))), {LENGTH_HEADER: str(len(written))}
