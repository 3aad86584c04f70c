"""Operations of an encoder in ONNX Runtime: embeddings, rankings, scores, classifications, and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from appliance.core.errors import RequestError
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.core.openai_types import Usage, new_id, now
from appliance.engines.pooling_protocol import (
    SIDES,
    Handler,
    as_list,
    class_of_text,
    classifications,
    decode_body,
    embeddings,
    pooled,
    require_json,
    rerank,
    score,
)
from appliance.limits.queue import require_size

if TYPE_CHECKING:
    from appliance.engines.onnx.batcher import Batcher
    from appliance.engines.onnx.encoder import Encoder, Floats, Text, Tokens

# Fields of vLLM that change the result, each with the values that change nothing.
_ONLY_VLLM: Mapping[str, tuple[object, ...]] = {
    "messages": (None,),
    "add_special_tokens": (None, True),
    "use_activation": (None, True),
    "embed_dtype": (None, "float32"),
    "endianness": (None, "native", "little"),
    "padding": (None, "do_not_pad"),
    "priority": (None, 0),
    "instruction": (None,),
    "chat_template": (None,),
    "chat_template_kwargs": (None,),
    "mm_processor_kwargs": (None,),
    "max_tokens_per_query": (None, 0),
    "max_tokens_per_doc": (None, 0),
}

_Side = Literal["left", "right"]


class _Request(msgspec.Struct):
    """What all requests have."""

    model: str | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: _Side | None = None


class _InputRequest(_Request):
    input: str | list[str | int | list[int]] = ""
    encoding_format: str | None = None
    dimensions: int | None = None


class _RankRequest(_Request):
    query: str = ""
    documents: str | list[str] = ""
    top_n: int = 0


class _PoolingRequest(_InputRequest):
    task: str | None = None


class _TokenizeRequest(msgspec.Struct):
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool | None = None


class _DetokenizeRequest(msgspec.Struct):
    tokens: list[int]


class Handlers:
    """The operations of one model."""

    def __init__(self, name: str, encoder: Encoder, batcher: Batcher) -> None:
        self._name, self._encoder, self._batcher = name, encoder, batcher
        self._by_operation: Mapping[Operation, Handler] = {
            Operation.EMBEDDING: self._embed,
            Operation.CLASSIFICATION: self._classify,
            Operation.POOLING: self._pool,
            Operation.RERANK: partial(rerank, self._rank),
            Operation.SCORE: partial(score, self._score),
            Operation.TOKENIZE: self._tokenize,
            Operation.DETOKENIZE: self._detokenize,
        }

    async def handle(self, request: ModelRequest) -> ModelResponse:
        """Answer one request; see `Model.handle`."""
        members = decode_body(request.body, dict[str, Any])
        for field, neutral in _ONLY_VLLM.items():
            is_own = field == "add_special_tokens" and request.operation is Operation.TOKENIZE
            if field in members and members[field] not in neutral and not is_own:
                raise RequestError(f"{field} needs engine.backend: vllm; leave it out", param=field)
        return await self._by_operation[request.operation](request)

    async def _embed(self, request: ModelRequest) -> ModelResponse:
        body = decode_body(request.body, _InputRequest)
        vectors, encoding_format, count = await self._vectors(body)
        return embeddings(self._model(request, body), vectors, encoding_format, count)

    async def _pool(self, request: ModelRequest) -> ModelResponse:
        """Return embeddings or probabilities, whichever the model has, in vLLM's format of `/pooling`."""
        body = decode_body(request.body, _PoolingRequest)
        own = "classify" if self._encoder.files.pooling is None else "embed"
        if body.task not in (None, own):
            raise RequestError(f"task is {body.task}; this model's is {own}, others need vllm", param="task")
        vectors, encoding_format, count = await self._vectors(body)
        return pooled(self._model(request, body), vectors, encoding_format, count)

    async def _vectors(self, body: _InputRequest) -> tuple[list[Floats], str, int]:
        """Return the vector of each input, the format that the client asks for, and the tokens of all inputs."""
        encoding_format = body.encoding_format or "float"
        require_json(encoding_format)
        if body.dimensions is not None and body.dimensions < 1:
            raise RequestError("dimensions must be at least 1", param="dimensions")
        rows, count = await self._encode(_inputs(body.input), body)
        vectors = rows if self._encoder.files.pooling is None else self._encoder.cut(rows, body.dimensions)
        return list(vectors), encoding_format, count

    async def _tokenize(self, request: ModelRequest) -> ModelResponse:
        body = decode_body(request.body, _TokenizeRequest)
        ids, texts = await self._batcher.with_tokenizer(
            self._encoder.tokens_of, body.prompt, add_special_tokens=body.add_special_tokens
        )
        response = {"count": len(ids), "max_model_len": self._encoder.files.max_length, "tokens": ids}
        return ModelResponse(msgspec.json.encode({**response, "token_strs": texts if body.return_token_strs else None}))

    async def _detokenize(self, request: ModelRequest) -> ModelResponse:
        body = decode_body(request.body, _DetokenizeRequest)
        text = await self._batcher.with_tokenizer(self._encoder.text_of, body.tokens)
        return ModelResponse(msgspec.json.encode({"prompt": text}))

    async def _classify(self, request: ModelRequest) -> ModelResponse:
        body = decode_body(request.body, _InputRequest)
        rows, count = await self._encode(_inputs(body.input), body)
        classes = [class_of_text(index, row.tolist(), self._encoder.files.labels) for index, row in enumerate(rows)]
        return classifications(self._model(request, body), classes, count)

    async def _rank(self, request: ModelRequest) -> ModelResponse:
        body = decode_body(request.body, _RankRequest)
        if body.top_n < 0:
            raise RequestError("top_n must be 0, which is all, or more", param="top_n")
        documents = [body.documents] if isinstance(body.documents, str) else body.documents
        require_size(len(documents), 1, field="documents")
        scores, count = await self._scores([body.query], documents, body, "documents")
        order = sorted(range(len(documents)), key=lambda index: -scores[index])
        results = [
            {"index": index, "document": {"text": documents[index]}, "relevance_score": scores[index]}
            for index in order[: body.top_n or None]
        ]
        usage = Usage(prompt_tokens=count, total_tokens=count)
        ranking = {"id": new_id("rerank"), "model": self._model(request, body), "usage": usage, "results": results}
        return ModelResponse(msgspec.json.encode(ranking))

    async def _score(self, request: ModelRequest) -> ModelResponse:
        body, members = decode_body(request.body, _Request), decode_body(request.body, dict[str, Any])
        sides = next(pair for pair in SIDES if all(side in members for side in pair))
        ones, others = (_texts(members[side], side) for side in sides)
        if len(ones) not in (1, len(others)):
            fault = f"{sides[0]} has {len(ones)} texts and {sides[1]} {len(others)}"
            raise RequestError(f"{fault}; there must be as many, or one {sides[0]}", param=sides[0])
        require_size(len(others), 1, field=sides[1])
        scores, count = await self._scores(ones, others, body, sides[1])
        usage = Usage(prompt_tokens=count, total_tokens=count)
        data = [{"index": index, "object": "score", "score": each} for index, each in enumerate(scores)]
        response = {"id": new_id("score"), "object": "list", "created": now(), "data": data, "usage": usage}
        return ModelResponse(msgspec.json.encode({**response, "model": self._model(request, body)}))

    async def _scores(
        self, ones: Sequence[str], others: Sequence[str], body: _Request, param: str
    ) -> tuple[list[float], int]:
        """Return the score of each pair, of which one may be in all, and the tokens of all texts."""
        try:
            if self._encoder.files.pooling is None:
                pairs = list(zip(list(ones) * (len(others) if len(ones) == 1 else 1), others, strict=True))
                rows, count = await self._encode(pairs, body)
                return rows[:, 0].tolist(), count
            rows, count = await self._encode([*ones, *others], body)
        except RequestError as error:
            # Here the texts are in a field with another name.
            error.param = param if error.param == "input" else error.param
            raise
        import numpy as np

        rows = self._encoder.cut(rows, None)
        unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return (unit[: len(ones)] * unit[len(ones) :]).sum(axis=1).tolist(), count

    async def _encode(self, texts: Sequence[Text], body: _Request) -> tuple[Floats, int]:
        """Return the row of each text, and the tokens of all."""
        import numpy as np

        limit, truncate = self._encoder.files.max_length, body.truncate_prompt_tokens
        if truncate is not None and truncate != -1 and not 1 <= truncate <= limit:
            message = f"truncate_prompt_tokens is {truncate}; must be -1, or 1 to {limit}, the most of this model"
            raise RequestError(message, param="truncate_prompt_tokens")
        kept = limit if truncate == -1 else truncate
        tokens: list[Tokens] = await self._batcher.tokenize(texts, kept, body.truncation_side or "right")
        rows = await self._batcher.compute(tokens)
        return np.stack(rows), sum(len(ids) for ids, _ in tokens)

    def _model(self, request: ModelRequest, body: _Request) -> str:
        return request.model or body.model or self._name


def _inputs(given: str | list[str | int | list[int]]) -> Sequence[Text]:
    inputs = as_list(given)
    require_size(len(inputs), 1, field="input")
    kind = type(inputs[0])
    for index, item in enumerate(inputs):
        if not isinstance(item, kind):
            raise RequestError(f"input[{index}] is of another type than input[0]; send them separately", param="input")
    return inputs


def _texts(value: Any, side: str) -> list[str]:  # Any: JSON values
    texts = value if isinstance(value, list) else [value]
    texts = [each["text"] if isinstance(each, dict) and "text" in each else each for each in texts]
    if not all(isinstance(each, str) for each in texts):
        raise RequestError(f"{side} must be a text, or a list of texts", param=side)
    return texts
