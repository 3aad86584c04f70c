"""Convert protobuf messages to inference requests, and inference responses to messages."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
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
    inputs = _raw(message) if message.raw_input_contents else [_typed(each) for each in message.inputs]
    return InferenceRequest(
        inputs=inputs,
        id=message.id or None,
        outputs=tuple(RequestedOutput(each.name, _values(each.parameters)) for each in message.outputs),
        parameters=_values(message.parameters),
    )


def message_from_response(
    response: InferenceResponse, requested: Sequence[RequestedOutput], *, is_raw: bool
) -> pb.ModelInferResponse:
    """Return the message of a response with the requested outputs; raw if `is_raw`, or if a datatype has no field."""
    outputs = response.select(requested)
    message = pb.ModelInferResponse(
        model_name=response.model_name, model_version=response.model_version or "", id=response.id or ""
    )
    _write(message.parameters, response.parameters)
    is_raw = is_raw or any(tensor.datatype not in _FIELDS for tensor in outputs)
    for tensor in outputs:
        output = message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        _write(output.parameters, tensor.parameters)
        if is_raw:
            message.raw_output_contents.append(tensor.raw)
        else:
            getattr(output.contents, _FIELDS[tensor.datatype]).extend(tensor.values())
    return message


def _raw(message: pb.ModelInferRequest) -> list[Tensor]:
    if any(each.HasField("contents") for each in message.inputs):
        raise RequestError("The request has both contents and raw_input_contents; it must have one of them")
    if len(message.raw_input_contents) != len(message.inputs):
        count = len(message.raw_input_contents)
        raise RequestError(f"The request has {len(message.inputs)} inputs, and {count} raw_input_contents")
    return [
        Tensor.of_raw(each.name, each.datatype, each.shape, raw)
        for each, raw in zip(message.inputs, message.raw_input_contents, strict=True)
    ]


def _typed(message: pb.ModelInferRequest.InferInputTensor) -> Tensor:
    kind = datatype(message.datatype).name
    field = _FIELDS.get(kind)
    if field is None:
        raise RequestError(f"The tensor {message.name!r} is {kind}, for which there is raw_input_contents alone")
    others = {descriptor.name for descriptor, _ in message.contents.ListFields()} - {field}
    if others:
        raise RequestError(f"The tensor {message.name!r} is {kind}, and has {min(others)}; it must have {field}")
    return Tensor.of_values(message.name, kind, message.shape, list(getattr(message.contents, field)))


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
