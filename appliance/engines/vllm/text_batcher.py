"""Batches of texts through the engine: tokenized off the event loop, computed together, returned in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from appliance.core.errors import RequestError
from appliance.core.openai_types import Usage
from appliance.engines.vllm.errors import translate_errors
from appliance.engines.vllm.tokenization import cut_long_text

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from vllm import PoolingParams
    from vllm.renderers import TokenizeParams
    from vllm.v1.engine.async_llm import AsyncLLM

# Tokenized at once, before other requests get their turn: large enough that a batch is much faster than its texts one
# by one, and still a matter of milliseconds.
_BATCH_TEXTS = 64
_BATCH_CHARACTERS = 65_536

Inputs = Sequence[str] | Sequence[list[int]]
"""Texts, or their token ids."""


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


def usage_of(outputs: Iterable[Encoded]) -> Usage:
    """Return the tokens of all texts: special ones are counted, cut-off ones are not."""
    tokens = sum(len(each.tokens) for each in outputs)
    return Usage(prompt_tokens=tokens, total_tokens=tokens)


class TextBatcher:
    """Encodes batches of texts in one engine."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm

    async def encode(self, request: Any, pooling: PoolingParams) -> list[Encoded]:  # Any: vLLM's request types
        """Encode the `input` of a request; cancelling this aborts it in the engine.

        Raises:
            RequestError: the request is at fault.
            EngineDeadError: the engine core died meanwhile.
        """
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
        tokenize, inputs = request.build_tok_params(self._llm.model_config), _as_list(request.input)
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


def _as_list(request_input: Any) -> Inputs:  # Any: one text, several, or the same as token ids
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
