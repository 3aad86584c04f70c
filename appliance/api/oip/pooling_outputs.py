"""Texts to numbers and labels, over embeddings, reranking and classification."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from appliance.api.oip.inputs import Columns, Spec
from appliance.core.errors import GatewayError, RequestError
from appliance.tensors import DATATYPES, Tensor

Facts = Mapping[str, Any]  # Any: JSON values
Body = Mapping[str, Any]  # Any: JSON values


class _Embedding(msgspec.Struct):
    embedding: str | list[float]
    index: int = 0


class Embeddings(msgspec.Struct):
    """What is read of embeddings."""

    data: list[_Embedding]


class _Result(msgspec.Struct):
    index: int
    relevance_score: float


class Ranking(msgspec.Struct):
    """What is read of a ranking."""

    results: list[_Result]


class _Token(msgspec.Struct):
    label: str
    probability: float
    start: int | None = None
    end: int | None = None


class _Class(msgspec.Struct):
    index: int = 0
    label: str | None = None
    probs: list[float] = []
    tokens: list[_Token] | None = None


class Classes(msgspec.Struct):
    """What is read of classes: one for each text, or one for each of its tokens."""

    data: list[_Class]


def embedding_specs(facts: Facts) -> Sequence[Spec]:
    """A vector for each text."""
    return [Spec("embedding", "FP32", (-1, facts.get("dimensions", -1)))]


def ask_embeddings(columns: Columns) -> Sequence[Body]:
    """One call with all texts, for vectors as bytes: what tensors are made of."""
    return [{**columns.fields, "input": list(columns["text_input"].texts), "encoding_format": "base64"}]


def read_embeddings(columns: Columns, replies: Sequence[Embeddings]) -> Sequence[Tensor]:
    """`embedding`, `[texts, dimensions]`."""
    data = sorted(replies[0].data, key=lambda each: each.index)
    rows = [_row(each.embedding) for each in data]
    return [_matrix("embedding", len(columns["text_input"].texts), rows)]


def ranking_specs(_: Facts) -> Sequence[Spec]:
    """A score for each document."""
    return [Spec("scores", "FP32", (-1,))]


def ask_ranking(columns: Columns) -> Sequence[Body]:
    """One call with all documents."""
    queries = columns["query"].texts
    if len(queries) != 1:
        raise RequestError(f"The input 'query' must have 1 element; it has {len(queries)}", param="query")
    return [{**columns.fields, "query": queries[0], "documents": list(columns["documents"].texts)}]


def read_ranking(columns: Columns, replies: Sequence[Ranking]) -> Sequence[Tensor]:
    """`scores`, in the order and the shape of the documents."""
    documents = columns["documents"]
    found = {result.index: result.relevance_score for result in replies[0].results}
    if found.keys() != set(range(len(documents.texts))):
        raise GatewayError(f"The model scored {len(found)} documents of {len(documents.texts)}")
    return [Tensor.of_values("scores", "FP32", documents.shape, [found[index] for index in sorted(found)])]


def class_specs(facts: Facts) -> Sequence[Spec]:
    """The likeliest label and the probability of each, for each text; or the label of each token, with its place."""
    if facts.get("task") == "token_classify":
        kinds = {"label": "BYTES", "probability": "FP32", "text": "INT64", "start": "INT64", "end": "INT64"}
        return [Spec(name, kind, (-1,)) for name, kind in kinds.items()]
    count = len(facts["labels"]) if "labels" in facts else -1
    return [Spec("label", "BYTES", (-1,)), Spec("probabilities", "FP32", (-1, count))]


def ask_classes(columns: Columns) -> Sequence[Body]:
    """One call with all texts."""
    return [{**columns.fields, "input": list(columns["text_input"].texts)}]


def read_classes(columns: Columns, replies: Sequence[Classes]) -> Sequence[Tensor]:
    """`label` and `probabilities`, `[texts, labels]`; where tokens are classified, what `_of_tokens` says."""
    data = sorted(replies[0].data, key=lambda each: each.index)
    if any(each.tokens is not None for each in data):
        return _of_tokens(data)
    texts = columns["text_input"]
    if len(data) != len(texts.texts):
        raise GatewayError(f"The model gave {len(data)} classes for {len(texts.texts)} texts")
    labels = [each.label or "" for each in data]
    rows = [_packed(each.probs) for each in data]
    return [Tensor.of_values("label", "BYTES", texts.shape, labels), _matrix("probabilities", len(rows), rows)]


def _of_tokens(data: Sequence[_Class]) -> Sequence[Tensor]:
    """One element for each token of all texts: its label and probability, the number of its text, and its place there,
    in characters, which is -1 where nobody knows it.
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


def _row(embedding: str | list[float]) -> bytes:
    # An upstream may not know base64 and give numbers.
    if isinstance(embedding, list):
        return _packed(embedding)
    try:
        return base64.b64decode(embedding, validate=True)
    except ValueError as error:
        raise GatewayError("The model's embedding is not base64") from error


def _packed(numbers: list[float]) -> bytes:
    try:
        return DATATYPES["FP32"].pack(numbers)
    except ValueError as error:
        raise GatewayError(f"The model's numbers are no FP32: {error}") from error


def _matrix(name: str, count: int, rows: Sequence[bytes]) -> Tensor:
    widths = {len(row) for row in rows}
    if len(rows) != count or len(widths) != 1 or (width := widths.pop()) % 4:
        raise GatewayError(f"The model gave {len(rows)} rows of {name}, of {sorted(widths)} bytes, for {count} texts")
    return Tensor.of_raw(name, "FP32", (count, width // 4), b"".join(rows))
