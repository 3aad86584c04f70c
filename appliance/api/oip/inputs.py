"""A request's inputs, sorted: texts for the model, and the fields beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from appliance.core.errors import RequestError
from appliance.tensors import InferenceRequest, Tensor

# A model that takes one tensor of texts takes it under any name, as KServe's own runtimes do.
_TEXT = "text_input"

_TEXTS = frozenset({_TEXT, "query", "documents"})

# The protocol's own, and what clients of Triton send for sequences and queues, which are none of the model's business.
_NO_FIELDS = frozenset(
    {"binary_data_output", "sequence_id", "sequence_start", "sequence_end", "timeout", "content_type", "headers"}
)

# What a translation sets itself.
_OURS = frozenset(
    {"model", "prompt", "messages", "input", "query", "documents", "stream", "stream_options", "encoding_format"}
    | {"top_n", "return_documents"}
)


@dataclass(frozen=True, slots=True)
class Spec:
    """What metadata says of one tensor; -1 is a size that differs from request to request."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """Texts in one row, and the shape they came in."""

    texts: Sequence[str]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Columns:
    """What is asked: texts by the names of their inputs, and fields for the body of the call, such as `max_tokens`."""

    texts: Mapping[str, Column]
    fields: Mapping[str, Any]  # Any: JSON values

    def __getitem__(self, name: str) -> Column:
        return self.texts[name]


def columns_of(request: InferenceRequest) -> Columns:
    """The inputs and parameters of a request.

    Raises:
        RequestError: one of them is no text and no field.
    """
    inputs = list(request.inputs)
    if len(inputs) == 1 and inputs[0].datatype == "BYTES" and inputs[0].name not in _TEXTS:
        return Columns({_TEXT: _column(inputs[0])}, fields_of(request.parameters))
    fields = dict(request.parameters)
    for tensor in inputs:
        if tensor.name not in _TEXTS:
            fields |= _field(tensor)
    return Columns({tensor.name: _column(tensor) for tensor in inputs if tensor.name in _TEXTS}, fields_of(fields))


def fields_of(parameters: Mapping[str, Any]) -> Mapping[str, Any]:  # Any: JSON values
    """The parameters that are fields of the call's body.

    Raises:
        RequestError: one of them is the translation's own.
    """
    fields = {name: value for name, value in parameters.items() if name not in _NO_FIELDS}
    # As vLLM's backend of Triton has it.
    if fields.pop("exclude_input_in_output", True) is False:
        fields["echo"] = True
    # A stream is asked for where the client goes, and everywhere else there is none.
    if fields.get("stream") is False:
        del fields["stream"]
    ours = sorted(_OURS & fields.keys())
    if ours:
        hint = "; ask generate_stream for a stream" if "stream" in ours else ""
        raise RequestError(f"{ours[0]} is no parameter here{hint}", param=ours[0])
    return fields


def texts(name: str) -> Callable[[Mapping[str, Any]], Sequence[Spec]]:  # Any: JSON values
    """Says that there is one output, of texts."""
    return lambda _: [Spec(name, "BYTES", (-1,))]


def _column(tensor: Tensor) -> Column:
    return Column(tensor.texts(), tensor.shape)


def _field(tensor: Tensor) -> Mapping[str, Any]:  # Any: JSON values
    values = tensor.values()
    if len(values) != 1:
        raise RequestError(f"The input {tensor.name!r} is a parameter, and must have 1 element; it has {len(values)}")
    value = tensor.texts()[0] if tensor.datatype == "BYTES" else values[0]
    if tensor.name != "sampling_parameters":
        return {tensor.name: value}
    # vLLM's backend of Triton takes all of them in one text.
    try:
        return msgspec.json.decode(value if isinstance(value, str) else b"", type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise RequestError("The input 'sampling_parameters' must be the text of a JSON object") from error
