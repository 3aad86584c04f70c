"""Requests and responses of models that pool, alike whatever engine computes.

Sources of the formats: https://platform.openai.com/docs/api-reference/embeddings, https://docs.cohere.com/reference/rerank,
https://api.jina.ai/redoc, vLLM's ``/score``, and its ``/classify`` with every label's name beside its probability.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from appliance.core.errors import RequestError
from appliance.core.model import ModelRequest, ModelResponse
from appliance.core.openai_types import (
    Classification,
    Classifications,
    EmbeddingData,
    Embeddings,
    Usage,
    encode_vector,
    new_id,
    now,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[Any]  # Any: float32, or what the engine computes in

SIDES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
"""The two sides of a score, by each of vLLM's names for them."""

Inputs = Sequence[str] | Sequence[list[int]]
"""Texts, or their token ids."""

Handler = Callable[[ModelRequest], Awaitable[ModelResponse]]
"""Handles the requests for one operation; raises what `Model.handle` does."""

T = TypeVar("T")

# The first field in the path of msgspec's errors.
_FIELD = re.compile(r"at `\$\.(\w+)")


async def rerank(endpoint: Handler, request: ModelRequest) -> ModelResponse:
    """Rank documents; they and the query may be texts, or objects with a `text`.

    The response is vLLM's ranking, which is Jina's, with Cohere's token count.
    """
    members = decode_body(request.body, dict[str, Any])
    for side in ("query", "documents"):
        if not members.get(side):
            raise RequestError(f"{side} is missing or empty; there is nothing to rank", param=side)
    if members.get("rank_fields") not in (None, [], ["text"]):
        raise RequestError("rank_fields is not supported; join the fields of a document in text", param="rank_fields")
    documents = members["documents"]
    if isinstance(documents, list):
        members["documents"] = [_text(item, f"documents[{index}]") for index, item in enumerate(documents)]
    members["query"] = _text(members["query"], "query")
    has_documents = members.pop("return_documents", None) is not False
    if members.get("top_n", 0) is None:
        del members["top_n"]
    response = await endpoint(replace(request, body=msgspec.json.encode(members)))
    if not isinstance(response.body, bytes):
        raise AssertionError("a ranking is never streamed; this is a bug")
    ranking = decode_body(response.body, dict[str, Any])
    for result in ranking["results"]:
        if has_documents:
            result["document"] = {kind: part for kind, part in result["document"].items() if part is not None}
        else:
            del result["document"]
    ranking["meta"] = {"tokens": {"input_tokens": ranking["usage"]["prompt_tokens"]}}
    return ModelResponse(msgspec.json.encode(ranking))


def _text(value: Any, path: str) -> Any:  # Any: JSON values
    """Return the text of an object that has one; texts, and contents of several kinds, are returned as they are."""
    if not isinstance(value, dict) or "content" in value:
        return value
    if not isinstance(value.get("text"), str):
        param = path.partition("[")[0]
        raise RequestError(f"{path} has no text; it must be a text, or an object with one", param=param)
    return value["text"]


async def score(endpoint: Handler, request: ModelRequest) -> ModelResponse:
    """Score one text against one or several, or several one by one: with embeddings, the score is the cosine."""
    members = decode_body(request.body, dict[str, Any])
    sides = next((pair for pair in SIDES if all(side in members for side in pair)), None)
    if sides is None:
        pairs = ", or ".join(" and ".join(pair) for pair in SIDES)
        missing = next((pair[1] for pair in SIDES if pair[0] in members), SIDES[0][0])
        raise RequestError(f"{missing} is missing; there must be {pairs}", param=missing)
    for side in sides:
        if not members[side]:
            raise RequestError(f"{side} is empty; there is nothing to score", param=side)
    return await endpoint(request)


def decode_body(body: bytes, kind: type[T]) -> T:
    """Decode the JSON of a request; raises RequestError if it is not of this type."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as error:
        field = _FIELD.search(str(error))
        raise RequestError(f"The body is not a request: {error}", param=field and field[1]) from error


def require_json(encoding_format: str) -> None:
    """Raise RequestError for vLLM's responses in plain bytes, whose shape is only in headers of its own server."""
    if encoding_format not in ("float", "base64"):
        raise RequestError(f"encoding_format is {encoding_format!r}; must be float or base64", param="encoding_format")


def as_list(request_input: Any) -> Inputs:  # Any: one text, several, or the same as token ids
    """Return the input as several; nothing to encode is refused, as OpenAI refuses it.

    Source: https://platform.openai.com/docs/api-reference/embeddings/create#embeddings-create-input
    """
    is_single = isinstance(request_input, str) or (request_input and isinstance(request_input[0], int))
    inputs: Inputs = [request_input] if is_single else request_input
    if not inputs:
        raise RequestError("input is empty; it must be a text, token ids, or a list of either", param="input")
    for index, item in enumerate(inputs):
        if not item:
            raise RequestError(f"input[{index}] is empty; there is nothing to encode", param="input")
    return inputs


def embeddings(model: str, vectors: Iterable[Vector], encoding_format: str, tokens: int) -> ModelResponse:
    """Return the response with the embeddings of all inputs, as numbers or in base64."""
    encoded = enumerate(_encode(each, encoding_format) for each in vectors)
    response = Embeddings(
        id=new_id("embd"),
        created=now(),
        model=model,
        data=[EmbeddingData(index=index, embedding=vector) for index, vector in encoded],
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
    )
    return ModelResponse(msgspec.json.encode(response))


def pooled(model: str, vectors: Iterable[Vector], encoding_format: str, tokens: int) -> ModelResponse:
    """Return vLLM's response with the pooled values of all inputs, as numbers or in base64."""
    encoded = enumerate(_encode(each, encoding_format) for each in vectors)
    data = [{"index": index, "object": "pooling", "data": values} for index, values in encoded]
    usage = Usage(prompt_tokens=tokens, total_tokens=tokens)
    response = {"id": new_id("pool"), "object": "list", "created": now(), "model": model, "data": data}
    return ModelResponse(msgspec.json.encode({**response, "usage": usage}))


def _encode(vector: Vector, encoding_format: str) -> str | list[float]:
    if encoding_format == "base64":
        return encode_vector(vector.astype("<f4").tobytes())
    numbers: list[float] = vector.tolist()
    return numbers


def classifications(model: str, classes: list[Classification], tokens: int) -> ModelResponse:
    """Return the response with the classes of all inputs."""
    response = Classifications(
        id=new_id("classify"),
        created=now(),
        model=model,
        data=classes,
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
    )
    return ModelResponse(msgspec.json.encode(response))


def class_of_text(index: int, probs: list[float], labels: Sequence[str]) -> Classification:
    """Return the class of one text, given the probabilities of all labels in their order."""
    by_label = dict(zip(labels, probs, strict=True))
    best = max(by_label, key=by_label.__getitem__)
    return Classification(index=index, label=best, probs=probs, num_classes=len(probs), probabilities=by_label)


def label_names(names: Mapping[int, str]) -> list[str]:
    """Return the labels in the order of the model's outputs; labels with the same name get their number."""
    ordered = [names[index] for index in sorted(names)]
    return [name if ordered.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(ordered)]
