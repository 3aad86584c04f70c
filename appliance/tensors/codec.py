"""Requests and answers as bytes: JSON, and after it the bytes of those tensors that are not in the JSON.

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
"""
The header that says how many bytes of a body are JSON; without it, all are.
"""

Wanted = TypeVar("Wanted")

_SIZE = "binary_data_size"

_WORDS = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "an integer",
    "null": "null",
    "object": "an object",
    "str": "a text",
}

_Parameters = dict[str, Any] | None  # Any: JSON values


class _Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: _Parameters = None
    data: Any = None  # Any: lists within lists


class _Output(msgspec.Struct):
    name: str
    parameters: _Parameters = None


class _Request(msgspec.Struct):
    inputs: list[_Tensor]
    id: str | None = None
    parameters: _Parameters = None
    outputs: list[_Output] | None = None


class _Response(msgspec.Struct):
    outputs: list[_Tensor]
    model_name: str = ""
    model_version: str | None = None
    id: str | None = None
    parameters: _Parameters = None


def read_request(body: bytes, length: str | None = None) -> InferenceRequest:
    """The request in a body, whose `LENGTH_HEADER` is `length`.

    Raises:
        RequestError: it is none.
    """
    header, rest = _split(body, length)
    request = decoded(header, _Request)
    return InferenceRequest(
        inputs=_tensors(request.inputs, rest),
        id=request.id,
        outputs=tuple(RequestedOutput(output.name, output.parameters or {}) for output in request.outputs or ()),
        parameters=request.parameters or {},
    )


def write_request(request: InferenceRequest) -> tuple[bytes, dict[str, str]]:
    """A request as a body, every tensor as bytes, and the headers that say so."""
    outputs = [{"name": output.name, "parameters": output.parameters} for output in request.outputs]
    says = {"id": request.id, "parameters": request.parameters, "outputs": outputs}
    return _joined(
        {**says, "inputs": [_described(tensor, is_binary=True) for tensor in request.inputs]}, request.inputs
    )


def read_response(body: bytes, length: str | None = None) -> InferenceResponse:
    """The answer in a body, whose `LENGTH_HEADER` is `length`.

    Raises:
        RequestError: it is none.
    """
    header, rest = _split(body, length)
    response = decoded(header, _Response)
    return InferenceResponse(
        model_name=response.model_name,
        model_version=response.model_version,
        outputs=_tensors(response.outputs, rest),
        id=response.id,
        parameters=response.parameters or {},
    )


def write_response(
    response: InferenceResponse, wanted: Sequence[RequestedOutput] = (), *, prefers_binary: bool = False
) -> tuple[bytes, dict[str, str]]:
    """An answer as a body, with the outputs the client wants, each as it wants it, and the headers that say so.

    Raises:
        RequestError: there is no such output, or it cannot be in JSON.
    """
    tensors = response.chosen(wanted)
    says = {output.name: output.parameters.get("binary_data") for output in wanted}
    is_binary = [prefers_binary if says.get(each.name) is None else says[each.name] is True for each in tensors]
    head: dict[str, Any] = {"model_name": response.model_name}
    if response.model_version is not None:
        head["model_version"] = response.model_version
    if response.id is not None:
        head["id"] = response.id
    if response.parameters:
        head["parameters"] = response.parameters
    described = [_described(tensor, is_binary=binary) for tensor, binary in zip(tensors, is_binary, strict=True)]
    binary = [tensor for tensor, is_so in zip(tensors, is_binary, strict=True) if is_so]
    return _joined({**head, "outputs": described}, binary)


def decoded(body: bytes, type_: type[Wanted]) -> Wanted:
    """JSON as an object of this type.

    Raises:
        RequestError: it is none.
    """
    try:
        return msgspec.json.decode(body, type=type_)
    except msgspec.ValidationError as error:
        raise RequestError(f"The body is not a request: {_in_words(str(error))}") from error
    except RecursionError as error:
        raise RequestError("The body is nested too deeply", code="invalid_json") from error
    except ValueError as error:
        raise RequestError(f"The body is not valid JSON: {error}", code="invalid_json") from error


def _in_words(message: str) -> str:
    """What msgspec says, without the types of a programming language."""
    return re.sub(r"`(\w+)`", lambda found: _WORDS.get(found[1], found[0]), message)


def _split(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    if length is None:
        return body, b""
    if not (length.isascii() and length.isdecimal() and len(length) <= 20 and int(length) <= len(body)):
        raise RequestError(
            f"Inference-Header-Content-Length must be the number of bytes of JSON at the start of the body, which has "
            f"{len(body)} bytes, and is {length[:40]!r}"
        )
    return body[: int(length)], body[int(length) :]


def _tensors(described: Sequence[_Tensor], rest: bytes) -> list[Tensor]:
    tensors, place = [], 0
    for each in described:
        size = (each.parameters or {}).get(_SIZE)
        if size is None:
            tensors.append(_with(Tensor.of_nested(each.name, each.datatype, each.shape, each.data), each.parameters))
            continue
        if type(size) is not int or size < 0 or place + size > len(rest):
            left = len(rest) - place
            raise RequestError(
                f"The tensor {each.name!r} has {_SIZE} {size!r:.40}, and {left} bytes are left in the body"
            )
        if each.data is not None:
            raise RequestError(f"The tensor {each.name!r} has both data and {_SIZE}; it must have one of them")
        raw = rest[place : place + size]
        tensors.append(_with(Tensor.of_raw(each.name, each.datatype, each.shape, raw), each.parameters))
        place += size
    if place < len(rest):
        raise RequestError(f"The body has {len(rest) - place} bytes more than its tensors say")
    return tensors


def _with(tensor: Tensor, parameters: _Parameters) -> Tensor:
    left = {name: value for name, value in (parameters or {}).items() if name != _SIZE}
    return replace(tensor, parameters=left) if left else tensor


def _described(tensor: Tensor, *, is_binary: bool) -> Mapping[str, Any]:  # Any: JSON values
    parameters = {**tensor.parameters, **({_SIZE: len(tensor.raw)} if is_binary else {})}
    told: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
    if parameters:
        told["parameters"] = parameters
    if not is_binary:
        told["data"] = tensor.texts() if tensor.datatype == "BYTES" else tensor.values()
    return told


def _joined(head: Mapping[str, Any], tensors: Sequence[Tensor]) -> tuple[bytes, dict[str, str]]:  # Any: JSON values
    written = msgspec.json.encode(head)
    if not tensors:
        return written, {}
    return b"".join((written, *(tensor.raw for tensor in tensors))), {LENGTH_HEADER: str(len(written))}
