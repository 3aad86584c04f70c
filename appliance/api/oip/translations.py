"""Each operation as tensors: bodies of OpenAI requests from input texts, and output tensors from the responses."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from appliance.api.oip.inputs import TensorSpec, TextInput, TextInputs
from appliance.core.errors import GatewayError, RequestError
from appliance.core.openai_types import (
    ChatCompletion,
    Classification,
    Classifications,
    Completion,
    Embeddings,
    Rerank,
)
from appliance.tensors import DATATYPES, Tensor

Facts = Mapping[str, Any]  # Any: JSON values
Body = Mapping[str, Any]  # Any: JSON values


def completion_bodies(text_inputs: TextInputs) -> Sequence[Mapping[str, Any]]:  # Any: JSON values
    """One request with all texts as prompts."""
    prompts = text_inputs["text_input"].texts
    return [{**text_inputs.fields, "prompt": list(prompts) if len(prompts) != 1 else prompts[0]}]


def completion_tensors(text_inputs: TextInputs, responses: Sequence[Completion]) -> Sequence[Tensor]:
    """`text_output` in the shape of the input, with one more dimension if each text has several answers."""
    (response,) = responses
    texts_ = [choice.text for choice in sorted(response.choices, key=lambda choice: choice.index)]
    return [_text_tensor(text_inputs["text_input"], texts_)]


def chat_bodies(text_inputs: TextInputs) -> Sequence[Mapping[str, Any]]:  # Any: JSON values
    """One request for each text, as the user's message."""
    return [
        {**text_inputs.fields, "messages": [{"role": "user", "content": text}]}
        for text in text_inputs["text_input"].texts
    ]


def chat_tensors(text_inputs: TextInputs, responses: Sequence[ChatCompletion]) -> Sequence[Tensor]:
    """`text_output`, as for completions."""
    texts_ = [
        choice.message.content or ""
        for response in responses
        for choice in sorted(response.choices, key=lambda choice: choice.index)
    ]
    return [_text_tensor(text_inputs["text_input"], texts_)]


def _text_tensor(text_input: TextInput, texts_: Sequence[str]) -> Tensor:
    each, left = divmod(len(texts_), len(text_input.texts))
    if left or not each:
        raise GatewayError(f"The model gave {len(texts_)} answers to {len(text_input.texts)} texts")
    return Tensor.of_values(
        "text_output", "BYTES", text_input.shape if each == 1 else (*text_input.shape, each), texts_
    )


def embedding_specs(facts: Facts) -> Sequence[TensorSpec]:
    """One vector for each text."""
    return [TensorSpec("embedding", "FP32", (-1, facts.get("dimensions", -1)))]


def embedding_bodies(text_inputs: TextInputs) -> Sequence[Body]:
    """One request with all texts, for vectors as base64."""
    return [{**text_inputs.fields, "input": list(text_inputs["text_input"].texts), "encoding_format": "base64"}]


def embedding_tensors(text_inputs: TextInputs, responses: Sequence[Embeddings]) -> Sequence[Tensor]:
    """`embedding`, `[texts, dimensions]`."""
    data = sorted(responses[0].data, key=lambda each: each.index)
    rows = [_embedding_bytes(each.embedding) for each in data]
    return [_matrix("embedding", len(text_inputs["text_input"].texts), rows)]


def ranking_specs(_: Facts) -> Sequence[TensorSpec]:
    """One score for each document."""
    return [TensorSpec("scores", "FP32", (-1,))]


def ranking_bodies(text_inputs: TextInputs) -> Sequence[Body]:
    """One request with all documents."""
    queries = text_inputs["query"].texts
    if len(queries) != 1:
        raise RequestError(f"The input 'query' must have 1 element; it has {len(queries)}", param="query")
    return [{**text_inputs.fields, "query": queries[0], "documents": list(text_inputs["documents"].texts)}]


def ranking_tensors(text_inputs: TextInputs, responses: Sequence[Rerank]) -> Sequence[Tensor]:
    """`scores` in the order and shape of the documents."""
    documents = text_inputs["documents"]
    found = {result.index: result.relevance_score for result in responses[0].results}
    if found.keys() != set(range(len(documents.texts))):
        raise GatewayError(f"The model scored {len(found)} documents of {len(documents.texts)}")
    return [Tensor.of_values("scores", "FP32", documents.shape, [found[index] for index in sorted(found)])]


def class_specs(facts: Facts) -> Sequence[TensorSpec]:
    """The most likely label and all probabilities for each text; or the label of each token with its position."""
    if facts.get("task") == "token_classify":
        kinds = {"label": "BYTES", "probability": "FP32", "text": "INT64", "start": "INT64", "end": "INT64"}
        return [TensorSpec(name, kind, (-1,)) for name, kind in kinds.items()]
    count = len(facts["labels"]) if "labels" in facts else -1
    return [TensorSpec("label", "BYTES", (-1,)), TensorSpec("probabilities", "FP32", (-1, count))]


def class_bodies(text_inputs: TextInputs) -> Sequence[Body]:
    """One request with all texts."""
    return [{**text_inputs.fields, "input": list(text_inputs["text_input"].texts)}]


def class_tensors(text_inputs: TextInputs, responses: Sequence[Classifications]) -> Sequence[Tensor]:
    """`label`, and `probabilities` of shape `[texts, labels]`; for token classification see `_token_tensors`."""
    data = sorted(responses[0].data, key=lambda each: each.index)
    if any(isinstance(each.tokens, list) for each in data):
        return _token_tensors(data)
    texts = text_inputs["text_input"]
    if len(data) != len(texts.texts):
        raise GatewayError(f"The model gave {len(data)} classes for {len(texts.texts)} texts")
    labels = [each.label or "" for each in data]
    rows = [_pack(each.probs or []) for each in data]
    return [Tensor.of_values("label", "BYTES", texts.shape, labels), _matrix("probabilities", len(rows), rows)]


def _token_tensors(data: Sequence[Classification]) -> Sequence[Tensor]:
    """One element for each token of all texts: label, probability, index of the text, and position in characters (-1 if
    unknown).
    """
    tokens = [(number, token) for number, each in enumerate(data) for token in each.tokens or ()]
    starts = [-1 if token.start is None else token.start for _, token in tokens]
    ends = [-1 if token.end is None else token.end for _, token in tokens]
    shape = (len(tokens),)
    return [
        Tensor.of_values("label", "BYTES", shape, [token.label for _, token in tokens]),
        Tensor.of_values("probability", "FP32", shape, [token.probability for _, token in tokens]),
        Tensor.of_values("text", "INT64", shape, [number for number, _ in tokens]),
        Tensor.of_values("start", "INT64", shape, starts),
        Tensor.of_values("end", "INT64", shape, ends),
    ]


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
