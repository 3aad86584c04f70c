"""Operations of models that pool: embeddings, classifications, rankings and scores, each of many texts at once.

Sources of the formats: https://platform.openai.com/docs/api-reference/embeddings, https://docs.cohere.com/reference/rerank,
https://api.jina.ai/redoc, vLLM's ``/score``, and its ``/classify`` with every label's name beside its probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from pydantic import TypeAdapter

from appliance.core.errors import RequestError
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.core.openai_types import (
    Classification,
    Classifications,
    EmbeddingData,
    Embeddings,
    TokenClass,
    encode_vector,
    new_id,
    now,
)
from appliance.engines.vllm.request_decoder import decode_request
from appliance.engines.vllm.serving import Endpoint, Handler, tokenization_handlers
from appliance.engines.vllm.text_batcher import Encoded, TextBatcher, usage_of

if TYPE_CHECKING:
    from starlette.datastructures import State
    from vllm.tasks import PoolingTask
    from vllm.v1.engine.async_llm import AsyncLLM

# The two sides of a score, by each of vLLM's names for them.
_SIDES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


def pooling_handlers(llm: AsyncLLM, state: State, task: PoolingTask) -> Mapping[Operation, Handler]:
    """Return the handlers of a model that pools, from what `init_app_state` built."""
    from vllm.entrypoints.pooling.classify.protocol import ClassificationCompletionRequest
    from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest, EmbeddingRequest
    from vllm.entrypoints.pooling.pooling.protocol import PoolingRequest
    from vllm.entrypoints.pooling.scoring.protocol import RerankRequest, ScoreRequest

    batcher, name = TextBatcher(llm), state.openai_serving_models.base_model_paths[0].name
    handlers = tokenization_handlers(state)
    pooling = Endpoint(TypeAdapter(PoolingRequest), state.serving_pooling)
    handlers[Operation.POOLING] = partial(_pool, pooling)
    if state.serving_embedding is not None:
        others = Endpoint(TypeAdapter(EmbeddingRequest), state.serving_embedding)
        texts = TypeAdapter(EmbeddingCompletionRequest)
        handlers[Operation.EMBEDDING] = partial(_embed, batcher, name, texts, partial(_pool, others))
    if task in ("classify", "token_classify"):
        classifier = Classifier(batcher, name, task, label_names(llm.model_config.hf_config.id2label))
        texts = TypeAdapter(ClassificationCompletionRequest)
        handlers[Operation.CLASSIFICATION] = partial(classifier.classify, texts)
    if (scores := state.serving_scores) is not None:
        ranks = Endpoint(TypeAdapter(RerankRequest), scores)
        handlers[Operation.RERANK] = partial(_rerank, ranks)
        handlers[Operation.SCORE] = partial(_score, Endpoint(TypeAdapter(ScoreRequest), scores))
    return handlers


T = TypeVar("T")


class _Format(msgspec.Struct):
    encoding_format: str = "float"


async def _pool(endpoint: Endpoint, request: ModelRequest) -> ModelResponse:
    """Have vLLM handle a request, unless it asks for a format that is no JSON."""
    _require_json(_decode(request.body, _Format).encoding_format)
    return await endpoint(request)


async def _embed(
    batcher: TextBatcher,
    name: str,
    request_type: TypeAdapter[Any],  # Any: vLLM's request types
    others: Handler,
    request: ModelRequest,
) -> ModelResponse:
    """Embed texts and token ids; anything else that vLLM takes, such as chats, goes to `others`."""
    if _has_chats(request.body):
        return await others(request)
    decoded = await decode_request(request_type, request)
    _require_json(decoded.encoding_format)
    if decoded.embed_dtype != "float32" or decoded.endianness != "native":
        return await others(request)
    outputs = await batcher.encode(decoded, decoded.to_pooling_params())
    vectors = (
        (encode_vector(each.values.astype("<f4").tobytes()) for each in outputs)
        if decoded.encoding_format == "base64"
        else (each.values.tolist() for each in outputs)
    )
    response = Embeddings(
        id=new_id("embd"),
        created=now(),
        model=name,
        data=[EmbeddingData(index=index, embedding=vector) for index, vector in enumerate(vectors)],
        usage=usage_of(outputs),
    )
    return ModelResponse(msgspec.json.encode(response))


def _require_json(encoding_format: str) -> None:
    """Raise RequestError for vLLM's responses in plain bytes, whose shape is only in headers of its own server."""
    if encoding_format not in ("float", "base64"):
        raise RequestError(f"encoding_format is {encoding_format!r}; must be float or base64", param="encoding_format")


class _Inputs(msgspec.Struct):
    messages: list[msgspec.Raw] | None = None
    input: Any = None  # Any: looked at, not read


def _has_chats(body: bytes) -> bool:
    """Whether chats are to be embedded: as `messages`, or as `input`."""
    try:
        inputs = msgspec.json.decode(body, type=_Inputs)
    except (ValueError, RecursionError):
        return False
    first = inputs.input[0] if isinstance(inputs.input, list) and inputs.input else None
    if isinstance(first, list) and first:
        first = first[0]
    return inputs.messages is not None or isinstance(first, dict)


@dataclass(frozen=True, slots=True)
class Classifier:
    """Classifies texts, or each of their tokens."""

    batcher: TextBatcher
    name: str
    task: PoolingTask
    labels: Sequence[str]

    async def classify(self, request_type: TypeAdapter[Any], request: ModelRequest) -> ModelResponse:
        """Handle one request; see `Handler`."""
        from vllm import PoolingParams

        decoded = await decode_request(request_type, request)
        pooling = PoolingParams(task=self.task, use_activation=decoded.use_activation)
        outputs = await self.batcher.encode(decoded, pooling)
        make = self._of_tokens if self.task == "token_classify" else self._of_text
        response = Classifications(
            id=new_id("classify"),
            created=now(),
            model=self.name,
            data=[make(index, output) for index, output in enumerate(outputs)],
            usage=usage_of(outputs),
        )
        return ModelResponse(msgspec.json.encode(response))

    def _of_text(self, index: int, output: Encoded) -> Classification:
        probs: list[float] = output.values.tolist()
        by_label = dict(zip(self.labels, probs, strict=True))
        best = max(by_label, key=by_label.__getitem__)
        return Classification(index=index, label=best, probs=probs, num_classes=len(probs), probabilities=by_label)

    def _of_tokens(self, index: int, output: Encoded) -> Classification:
        spans: Sequence[tuple[int | None, int | None]] = output.spans or [(None, None)] * len(output.tokens)
        best, probabilities = output.values.argmax(axis=-1).tolist(), output.values.max(axis=-1).tolist()
        tokens = [
            TokenClass(token=token, start=start, end=end, label=self.labels[label], probability=probability)
            for token, (start, end), label, probability in zip(output.tokens, spans, best, probabilities, strict=True)
            if start is None or start != end
        ]
        return Classification(index=index, tokens=tokens)


def label_names(names: Mapping[int, str]) -> list[str]:
    """Return the labels in the order of the model's outputs; labels with the same name get their number."""
    ordered = [names[index] for index in sorted(names)]
    return [name if ordered.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(ordered)]


async def _rerank(endpoint: Endpoint, request: ModelRequest) -> ModelResponse:
    """Rank documents; they and the query may be texts, or objects with a `text`.

    The response is vLLM's ranking, which is Jina's, with Cohere's token count.
    """
    members = _decode(request.body, dict[str, Any])
    for side in ("query", "documents"):
        if not members.get(side):
            raise RequestError(f"{side} is missing or empty; there is nothing to rank", param=side)
    documents = members["documents"]
    if isinstance(documents, list):
        members["documents"] = [_text(item, f"documents[{index}]") for index, item in enumerate(documents)]
    members["query"] = _text(members["query"], "query")
    has_documents = members.pop("return_documents", None) is not False
    if members.get("top_n", 0) is None:
        del members["top_n"]
    response = await endpoint(ModelRequest(Operation.RERANK, msgspec.json.encode(members), request.headers))
    if not isinstance(response.body, bytes):
        raise AssertionError("a ranking is never streamed; this is a bug")
    ranking = _decode(response.body, dict[str, Any])
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


async def _score(endpoint: Endpoint, request: ModelRequest) -> ModelResponse:
    """Score one text against one or several, or several one by one.

    Cross-encoders read both texts of a pair together; for embeddings the score is the cosine.
    """
    members = _decode(request.body, dict[str, Any])
    sides = next((pair for pair in _SIDES if all(side in members for side in pair)), None)
    if sides is None:
        pairs = ", or ".join(" and ".join(pair) for pair in _SIDES)
        missing = next((pair[1] for pair in _SIDES if pair[0] in members), _SIDES[0][0])
        raise RequestError(f"{missing} is missing; there must be {pairs}", param=missing)
    for side in sides:
        if not members[side]:
            raise RequestError(f"{side} is empty; there is nothing to score", param=side)
    return await endpoint(request)


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The body is not a request: {error}") from error
