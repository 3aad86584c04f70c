"""The inputs of a request: texts for the model, and fields for the body of the OpenAI request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from appliance.core.errors import RequestError
from appliance.tensors import InferenceRequest, Tensor

# A single tensor of texts may have any name, as in KServe's runtimes.
_TEXT = "text_input"

_TEXTS = frozenset({_TEXT, "query", "documents"})

# Parameters of the protocol, and of Triton's sequences and queues; not passed to the model.
_PROTOCOL_PARAMETERS = frozenset(
    {"binary_data_output", "sequence_id", "sequence_start", "sequence_end", "timeout", "content_type", "headers"}
)

# Fields that the translation sets.
_RESERVED = frozenset(
    {"model", "prompt", "messages", "input", "query", "documents", "stream", "stream_options", "encoding_format"}
    | {"top_n", "return_documents"}
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Metadata of a tensor; -1 in the shape is a size that varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextInput:
    """Texts as a flat list, and the shape of their tensor."""

    texts: Sequence[str]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextInputs:
    """Texts by input name, and fields of the body, such as `max_tokens`."""

    texts: Mapping[str, TextInput]
    fields: Mapping[str, Any]  # Any: JSON values

    def __getitem__(self, name: str) -> TextInput:
        return self.texts[name]


def parse_inputs(request: InferenceRequest) -> TextInputs:
    """Return the inputs and parameters of a request.

    Raises:
        RequestError: one of them is neither a text nor a field.
    """
    inputs = list(request.inputs)
    if len(inputs) == 1 and inputs[0].datatype == "BYTES" and inputs[0].name not in _TEXTS:
        return TextInputs({_TEXT: _column(inputs[0])}, parse_fields(request.parameters))
    fields = dict(request.parameters)
    for tensor in inputs:
        if tensor.name not in _TEXTS:
            fields |= _field(tensor)
    return TextInputs(
        {tensor.name: _column(tensor) for tensor in inputs if tensor.name in _TEXTS}, parse_fields(fields)
    )


def parse_fields(parameters: Mapping[str, Any]) -> Mapping[str, Any]:  # Any: JSON values
    """Return the parameters that are fields of the body.

    Raises:
        RequestError: one of them is reserved.
    """
    fields = {name: value for name, value in parameters.items() if name not in _PROTOCOL_PARAMETERS}
    # As in Triton's vLLM backend.
    if fields.pop("exclude_input_in_output", True) is False:
        fields["echo"] = True
    # The route decides whether the response is a stream.
    if fields.get("stream") is False:
        del fields["stream"]
    reserved = sorted(_RESERVED & fields.keys())
    if reserved:
        hint = "; ask generate_stream for a stream" if "stream" in reserved else ""
        raise RequestError(f"{reserved[0]} is no parameter here{hint}", param=reserved[0])
    return fields


def texts(name: str) -> Callable[[Mapping[str, Any]], Sequence[TensorSpec]]:  # Any: JSON values
    """Return the specs of one output of texts."""
    return lambda _: [TensorSpec(name, "BYTES", (-1,))]


def _column(tensor: Tensor) -> TextInput:
    return TextInput(tensor.texts(), tensor.shape)


def _field(tensor: Tensor) -> Mapping[str, Any]:  # Any: JSON values
    values = tensor.values()
    if len(values) != 1:
        raise RequestError(f"The input {tensor.name!r} is a parameter, and must have 1 element; it has {len(values)}")
    value = tensor.texts()[0] if tensor.datatype == "BYTES" else values[0]
    if tensor.name != "sampling_parameters":
        return {tensor.name: value}
    # Triton's vLLM backend takes all parameters as one JSON text.
    try:
        return msgspec.json.decode(value if isinstance(value, str) else b"", type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise RequestError("The input 'sampling_parameters' must be the text of a JSON object") from error
