"""The tensor signature of each operation: its input texts and output tensors.

Models speak the OpenAI protocol; each signature translates one of its operations.
"""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec

from appliance.auth import Authorizer
from appliance.core import openai_types
from appliance.core.errors import GatewayError, RequestError, UnsupportedOperationError
from appliance.core.model import Operation
from appliance.core.openai_types import Json
from appliance.tensors.datatype import DATATYPES
from appliance.tensors.tensor import InferenceRequest, Tensor, TensorSpec

Facts = Mapping[str, Any]  # Any: JSON values
"""The description of a model (`Model.describe`)."""

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

_by_index = attrgetter("index")


@dataclass(frozen=True, slots=True)
class TextInput:
    """Texts as a flat list, and the shape of their tensor."""

    texts: Sequence[str]
    shape: tuple[int, ...]


TextInputs = Mapping[str, TextInput]
"""Texts by the name of their input."""


class OperationSignature(ABC):
    """One operation as tensors, by way of OpenAI requests and responses."""

    operation: Operation
    response: type
    """The type of the OpenAI responses."""
    inputs: tuple[str, ...] = ("text_input",)

    @abstractmethod
    def outputs(self, facts: Facts) -> Sequence[TensorSpec]:
        """Return the outputs, with shapes as far as they are known from the model's facts."""

    @abstractmethod
    def bodies(self, inputs: TextInputs) -> Sequence[Json]:
        """Return the bodies of the OpenAI requests, without parameters."""

    @abstractmethod
    def tensors(self, inputs: TextInputs, responses: Sequence[Any]) -> Sequence[Tensor]:  # Any: of the type `response`
        """Return the output tensors from the OpenAI responses."""

    def specs(self) -> Sequence[TensorSpec]:
        """Return the required inputs."""
        return [TensorSpec(name, "BYTES", (1,) if name == "query" else (-1,)) for name in self.inputs]

    def takes(self, names: Collection[str], requested: Collection[str]) -> bool:
        """Return whether the inputs are sufficient and the outputs exist."""
        return set(self.inputs) <= set(names) and set(requested) <= {spec.name for spec in self.outputs({})}


class _Generation(OperationSignature):
    def outputs(self, facts: Facts) -> Sequence[TensorSpec]:  # noqa: ARG002 - the same for all models
        return [TensorSpec("text_output", "BYTES", (-1,))]

    def tensors(self, inputs: TextInputs, responses: Sequence[Any]) -> Sequence[Tensor]:
        """`text_output` in the shape of the input, with one more dimension if each text has several answers."""
        choices = [choice for response in responses for choice in sorted(response.choices, key=_by_index)]
        text_input = inputs["text_input"]
        each, left = divmod(len(choices), len(text_input.texts))
        if left or not each:
            raise GatewayError(f"The model gave {len(choices)} answers to {len(text_input.texts)} texts")
        shape = text_input.shape if each == 1 else (*text_input.shape, each)
        return [Tensor.of_values("text_output", "BYTES", shape, [_text(choice) for choice in choices])]


class _Completion(_Generation):
    """One request with all texts as prompts."""

    operation, response = Operation.COMPLETION, openai_types.Completion

    def bodies(self, inputs: TextInputs) -> Sequence[Json]:
        prompts = list(inputs["text_input"].texts)
        return [{"prompt": prompts if len(prompts) != 1 else prompts[0]}]


class _ChatCompletion(_Generation):
    """One request for each text, as the user's message."""

    operation, response = Operation.CHAT_COMPLETION, openai_types.ChatCompletion

    def bodies(self, inputs: TextInputs) -> Sequence[Json]:
        return [{"messages": [{"role": "user", "content": text}]} for text in inputs["text_input"].texts]


class _Embedding(OperationSignature):
    """One request with all texts, for vectors as base64; `embedding` has the shape `[texts, dimensions]`."""

    operation, response = Operation.EMBEDDING, openai_types.Embeddings

    def outputs(self, facts: Facts) -> Sequence[TensorSpec]:
        return [TensorSpec("embedding", "FP32", (-1, facts.get("dimensions", -1)))]

    def bodies(self, inputs: TextInputs) -> Sequence[Json]:
        return [{"input": list(inputs["text_input"].texts), "encoding_format": "base64"}]

    def tensors(self, inputs: TextInputs, responses: Sequence[Any]) -> Sequence[Tensor]:
        data = sorted(responses[0].data, key=_by_index)
        rows = [_embedding_bytes(each.embedding) for each in data]
        return [_matrix("embedding", len(inputs["text_input"].texts), rows)]


class _Rerank(OperationSignature):
    """One request with all documents; `scores` are in the order and shape of the documents."""

    operation, response = Operation.RERANK, openai_types.Rerank
    inputs = ("query", "documents")

    def outputs(self, facts: Facts) -> Sequence[TensorSpec]:  # noqa: ARG002 - the same for all models
        return [TensorSpec("scores", "FP32", (-1,))]

    def bodies(self, inputs: TextInputs) -> Sequence[Json]:
        queries = inputs["query"].texts
        if len(queries) != 1:
            raise RequestError(f"The input 'query' must have 1 element; it has {len(queries)}", param="query")
        return [{"query": queries[0], "documents": list(inputs["documents"].texts)}]

    def tensors(self, inputs: TextInputs, responses: Sequence[Any]) -> Sequence[Tensor]:
        documents = inputs["documents"]
        found = {result.index: result.relevance_score for result in responses[0].results}
        if found.keys() != set(range(len(documents.texts))):
            raise GatewayError(f"The model scored {len(found)} documents of {len(documents.texts)}")
        return [Tensor.of_values("scores", "FP32", documents.shape, [found[index] for index in sorted(found)])]


class _Classification(OperationSignature):
    """One request with all texts, for the likeliest label and all probabilities of each; or the label of each token."""

    operation, response = Operation.CLASSIFICATION, openai_types.Classifications

    def outputs(self, facts: Facts) -> Sequence[TensorSpec]:
        if facts.get("task") == "token_classify":
            return [TensorSpec(name, kind, (-1,)) for name, kind in _TOKEN_OUTPUTS.items()]
        count = len(facts["labels"]) if "labels" in facts else -1
        return [TensorSpec("label", "BYTES", (-1,)), TensorSpec("probabilities", "FP32", (-1, count))]

    def bodies(self, inputs: TextInputs) -> Sequence[Json]:
        return [{"input": list(inputs["text_input"].texts)}]

    def tensors(self, inputs: TextInputs, responses: Sequence[Any]) -> Sequence[Tensor]:
        data = sorted(responses[0].data, key=_by_index)
        if any(isinstance(each.tokens, list) for each in data):
            return _token_tensors(data)
        texts = inputs["text_input"]
        if len(data) != len(texts.texts):
            raise GatewayError(f"The model gave {len(data)} classes for {len(texts.texts)} texts")
        labels = [each.label or "" for each in data]
        rows = [_pack(each.probs or []) for each in data]
        return [Tensor.of_values("label", "BYTES", texts.shape, labels), _matrix("probabilities", len(rows), rows)]


SIGNATURES = (_Completion(), _ChatCompletion(), _Embedding(), _Rerank(), _Classification())
"""In order of preference, for a model that supports several of them."""

# Outputs of token classification: each has one element for each token of all texts.
_TOKEN_OUTPUTS = {"label": "BYTES", "probability": "FP32", "text": "INT64", "start": "INT64", "end": "INT64"}


def parse_inputs(request: InferenceRequest) -> tuple[TextInputs, Json]:
    """Return the texts of a request, and from its inputs and parameters the fields, such as `max_tokens`."""
    inputs = request.inputs
    if len(inputs) == 1 and inputs[0].datatype == "BYTES" and inputs[0].name not in _TEXTS:
        return {_TEXT: TextInput(inputs[0].texts(), inputs[0].shape)}, parse_fields(request.parameters)
    fields = dict(request.parameters)
    for tensor in inputs:
        if tensor.name not in _TEXTS:
            fields |= _field(tensor)
    texts = {tensor.name: TextInput(tensor.texts(), tensor.shape) for tensor in inputs if tensor.name in _TEXTS}
    return texts, parse_fields(fields)


def parse_fields(parameters: Mapping[str, Any]) -> Json:  # Any: JSON values
    """Return the parameters that are fields of the body."""
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


def default_signature(operations: Collection[Operation], access: Authorizer | None = None) -> OperationSignature:
    """Return the signature of a model with these operations, if inputs and outputs do not decide it.

    With `access`, operations that the current caller may use come first.
    """
    offered = _offered(operations)
    return next((each for each in offered if access is not None and access.may_request(each.operation)), offered[0])


def choose_signature(
    operations: Collection[Operation], inputs: Collection[str], requested: Collection[str], access: Authorizer
) -> OperationSignature:
    """Return the signature that fits the names of the inputs and of the requested outputs."""
    offered = _offered(operations)
    allowed = [signature for signature in offered if access.may_request(signature.operation)]
    if not allowed:
        access.require_operation(offered[0].operation)
    # Operations that the caller may not use come last; dispatch refuses them by name.
    for signature in (*allowed, *offered):
        if signature.takes(inputs, requested):
            return signature
    # Chat and completion have the same inputs and outputs.
    choices = "; or ".join(
        dict.fromkeys(
            f"{', '.join(signature.inputs)} for {', '.join(spec.name for spec in signature.outputs({}))}"
            for signature in allowed
        )
    )
    asked = f", and its outputs {', '.join(requested)}" if requested else ""
    raise RequestError(
        f"The request's inputs are {', '.join(inputs) or 'none'}{asked}; the model takes {choices}", param="inputs"
    )


def _offered(operations: Collection[Operation]) -> Sequence[OperationSignature]:
    offered = [signature for signature in SIGNATURES if signature.operation in operations]
    if not offered:
        can = ", ".join(sorted(operations))
        raise UnsupportedOperationError(f"The model neither generates nor encodes text; it supports: {can}")
    return offered


def _field(tensor: Tensor) -> Json:
    values = tensor.values()
    if len(values) != 1:
        raise RequestError(f"The input {tensor.name!r} is a parameter, and must have 1 element; it has {len(values)}")
    (value,) = tensor.as_json()
    if tensor.name != "sampling_parameters":
        return {tensor.name: value}
    # Triton's vLLM backend takes all parameters as one JSON text.
    try:
        return msgspec.json.decode(value if isinstance(value, str) else b"", type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise RequestError("The input 'sampling_parameters' must be the text of a JSON object") from error


def _text(choice: openai_types.CompletionChoice | openai_types.ChatCompletionChoice) -> str:
    return choice.text if isinstance(choice, openai_types.CompletionChoice) else choice.message.content or ""


def _token_tensors(data: Sequence[openai_types.Classification]) -> Sequence[Tensor]:
    """Return the outputs of token classification; `text` is the index of a text, positions are -1 if unknown."""
    tokens = [(number, token) for number, each in enumerate(data) for token in each.tokens or ()]
    values: Mapping[str, Sequence[Any]] = {
        "label": [token.label for _, token in tokens],
        "probability": [token.probability for _, token in tokens],
        "text": [number for number, _ in tokens],
        "start": [-1 if token.start is None else token.start for _, token in tokens],
        "end": [-1 if token.end is None else token.end for _, token in tokens],
    }
    return [Tensor.of_values(name, kind, (len(tokens),), values[name]) for name, kind in _TOKEN_OUTPUTS.items()]


def _embedding_bytes(embedding: str | list[float]) -> bytes:
    # An upstream that does not know base64 sends numbers.
    if isinstance(embedding, list):
        return _pack(embedding)
    try:
        return base64.b64decode(embedding, validate=True)
    except ValueError as error:
        raise GatewayError("The model's embedding is not base64") from error


def _pack(numbers: list[float]) -> bytes:
    try:
        return DATATYPES["FP32"].pack(numbers)
    except ValueError as error:
        raise GatewayError(f"The model's numbers are no FP32: {error}") from error


def _matrix(name: str, count: int, rows: Sequence[bytes]) -> Tensor:
    widths = {len(row) for row in rows}
    if len(rows) != count or len(widths) != 1 or (width := widths.pop()) % 4:
        raise GatewayError(f"The model gave {len(rows)} rows of {name}, of {sorted(widths)} bytes, for {count} texts")
    return Tensor.of_raw(name, "FP32", (count, width // 4), b"".join(rows))
