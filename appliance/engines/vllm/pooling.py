"""Operations of models that pool: embeddings, classifications, rankings and scores, each of many texts at once.

Sources of the formats: https://platform.openai.com/docs/api-reference/embeddings, https://docs.cohere.com/reference/rerank,
https://api.jina.ai/redoc, vLLM's ``/score``, and its ``/classify`` with every label's name beside its probability.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec
from pydantic import TypeAdapter

from appliance.core.errors import RequestError
from appliance.core.json_edit import edit, remove
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.core.openai_types import (
    Classification,
    TokenClass,
)
from appliance.engines.pooling_protocol import (
    Handler,
    Inputs,
    as_list,
    class_of_text,
    classifications,
    decode_body,
    embeddings,
    label_names,
    require_json,
    rerank,
    score,
)
from appliance.engines.vllm.errors import translate_errors
from appliance.engines.vllm.request_decoder import decode_request
from appliance.engines.vllm.serving import Endpoint, tokenization_handlers
from appliance.engines.vllm.tokenization import cut_long_text

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from starlette.datastructures import State
    from vllm import PoolingParams
    from vllm.renderers import TokenizeParams
    from vllm.tasks import PoolingTask
    from vllm.v1.engine.async_llm import AsyncLLM

# Tokenized at once, before other requests get their turn: large enough that a batch is much faster than its texts one
# by one, and still a matter of milliseconds.
_BATCH_TEXTS = 64
_BATCH_CHARACTERS = 65_536


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
        labels, texts = label_names(llm.model_config.hf_config.id2label), TypeAdapter(ClassificationCompletionRequest)
        handlers[Operation.CLASSIFICATION] = partial(_classify, batcher, name, task, labels, texts)
    if (scores := state.serving_scores) is not None:
        ranks = Endpoint(TypeAdapter(RerankRequest), scores)
        handlers[Operation.RERANK] = partial(rerank, ranks)
        handlers[Operation.SCORE] = partial(score, Endpoint(TypeAdapter(ScoreRequest), scores))
    return handlers


class _Format(msgspec.Struct):
    encoding_format: str = "float"


async def _pool(endpoint: Endpoint, request: ModelRequest) -> ModelResponse:
    """Have vLLM handle a request, unless it asks for a format that is no JSON."""
    require_json(decode_body(request.body, _Format).encoding_format)
    return await endpoint(request)


async def _embed(
    batcher: TextBatcher,
    name: str,
    request_type: TypeAdapter[Any],  # Any: vLLM's request types
    others: Handler,
    request: ModelRequest,
) -> ModelResponse:
    """Embed texts and token ids; anything else that vLLM takes, such as chats, goes to `others`."""
    inputs = _look_at(request.body)
    if inputs.dimensions is not None:
        request = batcher.without_native_dimensions(request, inputs.dimensions)
    if inputs.has_chats:
        return await others(request)
    decoded = await decode_request(request_type, request)
    require_json(decoded.encoding_format)
    if decoded.embed_dtype != "float32" or decoded.endianness != "native":
        return await others(request)
    outputs = await batcher.encode(decoded, decoded.to_pooling_params())
    model = request.model or decoded.model or name
    return embeddings(model, [each.values for each in outputs], decoded.encoding_format, tokens_of(outputs))


class _Inputs(msgspec.Struct):
    messages: list[msgspec.Raw] | None = None
    input: Any = None  # Any: looked at, not read
    dimensions: Any = None  # Any: as above

    @property
    def has_chats(self) -> bool:
        """Whether chats are to be embedded: as `messages`, or as `input`."""
        first = self.input[0] if isinstance(self.input, list) and self.input else None
        if isinstance(first, list) and first:
            first = first[0]
        return self.messages is not None or isinstance(first, dict)


def _look_at(body: bytes) -> _Inputs:
    """Return what is needed of a body before it is validated; nothing of one that cannot be read."""
    try:
        return msgspec.json.decode(body, type=_Inputs)
    except (ValueError, RecursionError):
        return _Inputs()


async def _classify(
    batcher: TextBatcher,
    name: str,
    task: PoolingTask,
    labels: Sequence[str],
    request_type: TypeAdapter[Any],  # Any: vLLM's request types
    request: ModelRequest,
) -> ModelResponse:
    """Classify texts, or each of their tokens."""
    from vllm import PoolingParams

    decoded = await decode_request(request_type, request)
    outputs = await batcher.encode(decoded, PoolingParams(task=task, use_activation=decoded.use_activation))
    classes = (
        [_class_of_tokens(index, output, labels) for index, output in enumerate(outputs)]
        if task == "token_classify"
        else [class_of_text(index, output.values.tolist(), labels) for index, output in enumerate(outputs)]
    )
    return classifications(request.model or decoded.model or name, classes, tokens_of(outputs))


def _class_of_tokens(index: int, output: Encoded, labels: Sequence[str]) -> Classification:
    spans: Sequence[tuple[int | None, int | None]] = output.spans or [(None, None)] * len(output.tokens)
    best, probabilities = output.values.argmax(axis=-1).tolist(), output.values.max(axis=-1).tolist()
    tokens = [
        TokenClass(token=token, start=start, end=end, label=labels[label], probability=probability)
        for token, (start, end), label, probability in zip(output.tokens, spans, best, probabilities, strict=True)
        if start is None or start != end
    ]
    return Classification(index=index, tokens=tokens)


@dataclass(frozen=True, slots=True)
class Encoded:
    """The engine's output for one text.

    `values` has the shape `(dimensions,)` for an embedding, `(labels,)` for a classification, `(tokens, labels)` for
    a classification of tokens. `spans` has the first and one past the last character of each token, `(0, 0)` for
    special ones; it is empty for token ids.
    """

    values: NDArray[Any]  # Any: float32, or what the engine computes in
    tokens: Sequence[int]
    spans: Sequence[tuple[int, int]]


def tokens_of(outputs: Iterable[Encoded]) -> int:
    """Return the tokens of all texts: special ones are counted, cut-off ones are not."""
    return sum(len(each.tokens) for each in outputs)


class TextBatcher:
    """Encodes batches of texts in one engine."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm

    def without_native_dimensions(self, request: ModelRequest, dimensions: Any) -> ModelRequest:  # Any: JSON value
        """Return the request without the length of embeddings that the model has anyway; vLLM takes none for it.

        Raises:
            RequestError: it is another length, and the model's embeddings cannot be cut.
        """
        config, size = self._llm.model_config, self._llm.model_config.embedding_size
        if config.is_matryoshka:
            return request
        if dimensions != size:
            raise RequestError(
                f"dimensions is {str(dimensions)[:80]!r}; this model's embeddings have {size} numbers, and it was not "
                "trained to have them cut, so leave dimensions out",
                param="dimensions",
            )
        return replace(request, body=edit(request.body, {"dimensions": remove}))

    async def encode(self, request: Any, pooling: PoolingParams) -> list[Encoded]:  # Any: vLLM's request types
        """Encode the `input` of a request; cancelling this aborts it in the engine. Raises as `translate_errors`."""
        with translate_errors(request):
            try:
                with translate_errors():
                    pooling.verify(self._llm.model_config)
            except RequestError as error:
                # Of all that is verified, only this comes from the client.
                error.param = "dimensions"
                raise
            return await self._encode_all(request, pooling)

    async def _encode_all(self, request: Any, pooling: PoolingParams) -> list[Encoded]:  # Any: vLLM's request types
        tokenize, inputs = request.build_tok_params(self._llm.model_config), as_list(request.input)
        loop, executor = asyncio.get_running_loop(), self._llm.renderer._executor
        prompts: list[Any] = []
        for batch in _batches(inputs):
            # In the renderer's own thread: a tokenizer may not be used by two at once.
            prompts += await loop.run_in_executor(executor, self._tokenize, batch, tokenize)
        arrived, name = time.time(), f"texts-{uuid4().hex}"
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._encode_one(prompt, pooling, arrived, f"{name}-{index}"))
                    for index, prompt in enumerate(prompts)
                ]
        except BaseExceptionGroup as errors:
            # One faulty text fails the request; the group has aborted the others.
            raise errors.exceptions[0] from errors
        return [task.result() for task in tasks]

    def _tokenize(self, inputs: Inputs, params: TokenizeParams) -> list[Any]:  # Any: vLLM's prompts
        renderer = self._llm.renderer
        tokenizer = renderer.get_tokenizer()
        texts = [item for item in inputs if isinstance(item, str)]
        tokens: Any = inputs  # Any: what a tokenizer returns
        spans: Any = [[] for _ in inputs]
        if texts:
            checked = [params.apply_pre_tokenization(tokenizer, {"prompt": text})["prompt"] for text in texts]
            checked = [cut_long_text(tokenizer, text, params) for text in checked]
            with_spans = {"return_offsets_mapping": True} if getattr(tokenizer, "is_fast", False) else {}
            tokenized = tokenizer(checked, **params.get_encode_kwargs(), **with_spans)
            tokens, spans = tokenized["input_ids"], tokenized.get("offset_mapping", spans)
        for ids in tokens:
            renderer.validate_token_ids(ids, parameter="input")
        return [
            params.apply_post_tokenization(tokenizer, {"prompt_token_ids": ids, "prompt_token_offsets": offsets})
            for ids, offsets in zip(tokens, spans, strict=True)
        ]

    async def _encode_one(self, prompt: Any, pooling: PoolingParams, arrived: float, name: str) -> Encoded:
        tokens = prompt["prompt_token_ids"]
        engine_input = self._llm.renderer.process_for_engine({"prompt_token_ids": tokens}, arrived)
        async for output in self._llm.encode(engine_input, pooling, name):
            # As float32, because numpy has no bfloat16.
            return Encoded(output.outputs.data.float().numpy(), tokens, prompt["prompt_token_offsets"])
        raise AssertionError("the engine ended a request without an output; this is a bug")


def _batches(inputs: Inputs) -> Iterator[Inputs]:
    """Yield the inputs in order, as many at once as are tokenized together."""
    begin = size = 0
    for end, item in enumerate(inputs):
        size += len(item)
        if end > begin and (end - begin == _BATCH_TEXTS or size > _BATCH_CHARACTERS):
            yield inputs[begin:end]
            begin, size = end, len(item)
    yield inputs[begin:]
