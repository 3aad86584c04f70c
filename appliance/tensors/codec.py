"""Encode and decode inference requests and responses: JSON, followed by the bytes of tensors sent as binary data.

Source: https://github.com/kserve/open-inference-protocol, "Inference Request JSON Object", and Triton's binary tensor
data extension (https://github.com/triton-inference-server/server, protocol/extension_binary_data.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from appliance.core.errors import RequestError
from appliance.tensors.inference import InferenceRequest, InferenceResponse, RequestedOutput
from appliance.tensors.tensor import Tensor

LENGTH_HEADER = "inference-header-content-length"
"""The header with the number of bytes of JSON at the start of a body; without it, all of the body is JSON."""

Decoded = TypeVar("Decoded")

_BINARY_SIZE = "binary_data_size"

# JSON words for the Python types in msgspec's messages.
_JSON_TYPES = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "an integer",
    "null": "null",
    "object": "an object",
    "str": "a text",
}

_Parameters = dict[str, Any] | None  # Any: JSON values


class TensorBody(msgspec.Struct):
    """A tensor; its data is nested or flat lists, or follows the JSON as binary data."""

    name: str
    shape: list[int]
    datatype: str
    parameters: _Parameters = None
    data: Any = None  # Any: lists within lists


class OutputBody(msgspec.Struct):
    """A requested output."""

    name: str
    parameters: _Parameters = None


class InferenceRequestBody(msgspec.Struct):
    """The JSON of a request."""

    inputs: list[TensorBody]
    id: str | None = None
    parameters: _Parameters = None
    outputs: list[OutputBody] | None = None


class InferenceResponseBody(msgspec.Struct):
    """The JSON of a response."""

    outputs: list[TensorBody]
    model_name: str = ""
    model_version: str | None = None
    id: str | None = None
    parameters: _Parameters = None


def read_request(body: bytes, length: str | None = None) -> InferenceRequest:
    """Decode a request; `length` is the value of `LENGTH_HEADER`.

    Raises:
        RequestError: the body is not a request.
    """
    header, rest = _split(body, length)
    request = decode(header, InferenceRequestBody)
    return InferenceRequest(
        inputs=_tensors(request.inputs, rest),
        id=request.id,
        outputs=tuple(RequestedOutput(output.name, output.parameters or {}) for output in request.outputs or ()),
        parameters=request.parameters or {},
    )


def write_request(request: InferenceRequest) -> tuple[bytes, dict[str, str]]:
    """Encode a request with all tensors as binary data; return the body and its headers."""
    outputs = [{"name": output.name, "parameters": output.parameters} for output in request.outputs]
    head = {"id": request.id, "parameters": request.parameters, "outputs": outputs}
    return _join({**head, "inputs": [_describe(tensor, is_binary=True) for tensor in request.inputs]}, request.inputs)


def read_response(body: bytes, length: str | None = None) -> InferenceResponse:
    """Decode a response; `length` is the value of `LENGTH_HEADER`.

    Raises:
        RequestError: the body is not a response.
    """
    header, rest = _split(body, length)
    response = decode(header, InferenceResponseBody)
    return InferenceResponse(
        model_name=response.model_name,
        model_version=response.model_version,
        outputs=_tensors(response.outputs, rest),
        id=response.id,
        parameters=response.parameters or {},
    )


def write_response(
    response: InferenceResponse, requested: Sequence[RequestedOutput] = (), *, prefers_binary: bool = False
) -> tuple[bytes, dict[str, str]]:
    """Encode a response with the requested outputs, as JSON or binary data as requested; return body and headers.

    Raises:
        RequestError: a requested output does not exist, or cannot be written as JSON.
    """
    tensors = response.select(requested)
    binary_data = {output.name: output.parameters.get("binary_data") for output in requested}
    is_binary = [
        prefers_binary if binary_data.get(each.name) is None else binary_data[each.name] is True for each in tensors
    ]
    head: dict[str, Any] = {"model_name": response.model_name}
    if response.model_version is not None:
        head["model_version"] = response.model_version
    if response.id is not None:
        head["id"] = response.id
    if response.parameters:
        head["parameters"] = response.parameters
    described = [_describe(tensor, is_binary=binary) for tensor, binary in zip(tensors, is_binary, strict=True)]
    binary_tensors = [tensor for tensor, binary in zip(tensors, is_binary, strict=True) if binary]
    return _join({**head, "outputs": described}, binary_tensors)


def decode(body: bytes, type_: type[Decoded]) -> Decoded:
    """Decode JSON as `type_`.

    Raises:
        RequestError: it is not valid JSON, or not of that type.
    """
    try:
        return msgspec.json.decode(body, type=type_)
    except msgspec.ValidationError as error:
        raise RequestError(f"The body is not a request: {_with_json_types(str(error))}") from error
    except RecursionError as error:
        raise RequestError("The body is nested too deeply", code="invalid_json") from error
    except ValueError as error:
        raise RequestError(f"The body is not valid JSON: {error}", code="invalid_json") from error


def _with_json_types(message: str) -> str:
    return re.sub(r"`(\w+)`", lambda found: _JSON_TYPES.get(found[1], found[0]), message)


def _split(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    if length is None:
        return body, b""
    if not (length.isascii() and length.isdecimal() and len(length) <= 20 and int(length) <= len(body)):
        raise RequestError(
            f"Inference-Header-Content-Length must be the number of bytes of JSON at the start of the body, which has "
            f"{len(body)} bytes, and is {length[:40]!r}"
        )
    return body[: int(length)], body[int(length) :]


def _tensors(entries: Sequence[TensorBody], rest: bytes) -> list[Tensor]:
    tensors, offset = [], 0
    for each in entries:
        size = (each.parameters or {}).get(_BINARY_SIZE)
        if size is None:
            tensors.append(
                _with_parameters(Tensor.of_nested(each.name, each.datatype, each.shape, each.data), each.parameters)
            )
            continue
        if type(size) is not int or size < 0 or offset + size > len(rest):
            left = len(rest) - offset
            raise RequestError(
                f"The tensor {each.name!r} has {_BINARY_SIZE} {size!r:.40}, and {left} bytes are left in the body"
            )
        if each.data is not None:
            raise RequestError(f"The tensor {each.name!r} has both data and {_BINARY_SIZE}; it must have one of them")
        raw = rest[offset : offset + size]
        tensors.append(_with_parameters(Tensor.of_raw(each.name, each.datatype, each.shape, raw), each.parameters))
        offset += size
    if offset < len(rest):
        raise RequestError(f"The body has {len(rest) - offset} bytes more than its tensors say")
    return tensors


def _with_parameters(tensor: Tensor, parameters: _Parameters) -> Tensor:
    own = {name: value for name, value in (parameters or {}).items() if name != _BINARY_SIZE}
    return replace(tensor, parameters=own) if own else tensor


def _describe(tensor: Tensor, *, is_binary: bool) -> Mapping[str, Any]:  # Any: JSON values
    parameters = {**tensor.parameters, **({_BINARY_SIZE: len(tensor.raw)} if is_binary else {})}
    described: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
    if parameters:
        described["parameters"] = parameters
    if not is_binary:
        described["data"] = tensor.texts() if tensor.datatype == "BYTES" else tensor.values()
    return described


def _join(head: Mapping[str, Any], tensors: Sequence[Tensor]) -> tuple[bytes, dict[str, str]]:  # Any: JSON values
    written = msgspec.json.encode(head)
    if not tensors:
        return written, {}
    return b"".join((written, *(tensor.raw for tensor in tensors))), {LENGTH_HEADER: str(len(written))}
