"""Convert protobuf messages to inference requests and responses, and back."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

from appliance.core.errors import RequestError
from appliance.tensors.datatype import datatype
from appliance.tensors.grpc import inference_pb2 as pb
from appliance.tensors.tensor import InferenceRequest, InferenceResponse, RequestedOutput, Tensor

# The message field of each datatype; 16-bit floats have none.
_FIELDS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def request_from_message(message: pb.ModelInferRequest) -> InferenceRequest:
    """Return the request of a message."""
    return InferenceRequest(
        inputs=_tensors(message.inputs, message.raw_input_contents, "inputs"),
        id=message.id or None,
        outputs=tuple(RequestedOutput(each.name, _values(each.parameters)) for each in message.outputs),
        parameters=_values(message.parameters),
    )


def response_from_message(message: pb.ModelInferResponse) -> InferenceResponse:
    """Return the response of a message."""
    outputs = _tensors(message.outputs, message.raw_output_contents, "outputs")
    return InferenceResponse(
        message.model_name, message.model_version or None, outputs, message.id or None, _values(message.parameters)
    )


def message_from_request(
    request: InferenceRequest, model_name: str, model_version: str = "", *, is_raw: bool
) -> pb.ModelInferRequest:
    """Return the message of a request; raw if `is_raw`, or if a datatype has no field."""
    message = pb.ModelInferRequest(model_name=model_name, model_version=model_version, id=request.id or "")
    _write(message.parameters, request.parameters)
    for requested in request.outputs:
        _write(message.outputs.add(name=requested.name).parameters, requested.parameters or {})
    _add_tensors(message.inputs, message.raw_input_contents, request.inputs, is_raw=is_raw)
    return message


def message_from_response(
    response: InferenceResponse, requested: Sequence[RequestedOutput], *, is_raw: bool
) -> pb.ModelInferResponse:
    """Return the message of a response with the requested outputs; raw if `is_raw`, or if a datatype has no field."""
    message = pb.ModelInferResponse(
        model_name=response.model_name, model_version=response.model_version or "", id=response.id or ""
    )
    _write(message.parameters, response.parameters)
    _add_tensors(message.outputs, message.raw_output_contents, response.select(requested), is_raw=is_raw)
    return message


# Any: the same fields in messages of inputs and of outputs.
def _add_tensors(messages: Any, raw_contents: Any, tensors: Sequence[Tensor], *, is_raw: bool) -> None:
    is_raw = is_raw or any(tensor.datatype not in _FIELDS for tensor in tensors)
    for tensor in tensors:
        message = messages.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        _write(message.parameters, tensor.parameters)
        if is_raw:
            raw_contents.append(tensor.raw)
        else:
            getattr(message.contents, _FIELDS[tensor.datatype]).extend(tensor.values())


def _tensors(messages: Any, raw_contents: Sequence[bytes], kind: str) -> list[Tensor]:
    """Return the tensors of messages whose `kind` is inputs or outputs."""
    if not raw_contents:
        return [_typed(each) for each in messages]
    if any(each.HasField("contents") for each in messages):
        raise RequestError(f"The message has both contents and raw_{kind[:-1]}_contents; it must have one of them")
    if len(raw_contents) != len(messages):
        raise RequestError(f"The message has {len(messages)} {kind}, and {len(raw_contents)} raw_{kind[:-1]}_contents")
    return [
        replace(Tensor.of_raw(each.name, each.datatype, each.shape, raw), parameters=_values(each.parameters))
        for each, raw in zip(messages, raw_contents, strict=True)
    ]


def _typed(message: Any) -> Tensor:  # Any: an input or an output
    kind = datatype(message.datatype).name
    field = _FIELDS.get(kind)
    if field is None:
        raise RequestError(f"The tensor {message.name!r} is {kind}, for which there is raw_input_contents alone")
    others = {descriptor.name for descriptor, _ in message.contents.ListFields()} - {field}
    if others:
        raise RequestError(f"The tensor {message.name!r} is {kind}, and has {min(others)}; it must have {field}")
    tensor = Tensor.of_values(message.name, kind, message.shape, list(getattr(message.contents, field)))
    return replace(tensor, parameters=_values(message.parameters))


def _values(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:  # Any: JSON values
    choices = {name: value.WhichOneof("parameter_choice") for name, value in parameters.items()}
    return {name: getattr(parameters[name], choice) for name, choice in choices.items() if choice}


def _write(message: MutableMapping[str, pb.InferParameter], parameters: Mapping[str, Any]) -> None:  # Any: JSON values
    for name, value in parameters.items():
        parameter = message[name]
        match value:
            case bool():
                parameter.bool_param = value
            case int() if -(1 << 63) <= value < 1 << 63:
                parameter.int64_param = value
            case int() | float():
                parameter.double_param = value
            case _:
                parameter.string_param = str(value)
