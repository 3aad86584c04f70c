"""Many texts through the engine: tokenized off the event loop, computed together, answered in their order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from appliance.core.errors import RequestError
from appliance.engines.vllm.long_texts import shortened

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from vllm import PoolingParams
    from vllm.renderers import TokenizeParams
    from vllm.v1.engine.async_llm import AsyncLLM

# So much is tokenized before it is the turn of another request: large enough that a batch is much faster than its texts
# one by one, and still a matter of milliseconds.
_SLICE_TEXTS = 64
_SLICE_CHARACTERS = 65_536

Input = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""
One text, several, or the same as token ids.
"""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the engine made of one text.

    `values` is what its pooler gives: `(dimensions,)` for an embedding, `(labels,)` for a classification,
    `(tokens, labels)` for a classification of tokens. `spans` has the first and one past the last character
    of each token, `(0, 0)` for special ones; it is empty for token ids.
    """

    values: NDArray[Any]  # Any: float32, or what the engine computes in
    tokens: Sequence[int]
    spans: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _Prompt:
    tokens: list[int]
    spans: list[tuple[int, int]]


class TextBatcher:
    """The way of texts through one engine."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm

    async def encode(self, given: Input, tokenize: TokenizeParams, pool: PoolingParams) -> list[Encoded]:
        """Encode what a request gave as its `input`; cancelling the wait aborts it in the engine.

        Raises:
            RequestError: there is nothing to encode.
            VLLMValidationError: a text is too long, or a token id is none of the model's.
        """
        renderer = self._llm.renderer
        pool.verify(self._llm.model_config)
        inputs = _several(given)
        prompts: list[_Prompt] = []
        for some in _slices(inputs):
            # The renderer's own thread: a tokenizer may not be used by two at once.
            prompts += await asyncio.get_running_loop().run_in_executor(
                renderer._executor, self._tokenize, some, tokenize
            )
        arrived, name = time.time(), f"texts-{uuid4().hex}"
        try:
            async with asyncio.TaskGroup() as group:
                works = [
                    group.create_task(self._encode(prompt, pool, arrived, f"{name}-{index}"))
                    for index, prompt in enumerate(prompts)
                ]
        except BaseExceptionGroup as faults:
            # One text at fault condemns the request; the group has aborted the others.
            raise faults.exceptions[0] from faults
        return [work.result() for work in works]

    def _tokenize(self, inputs: Sequence[str] | Sequence[list[int]], params: TokenizeParams) -> list[_Prompt]:
        tokenizer = self._llm.renderer.get_tokenizer()
        texts = [each for each in inputs if isinstance(each, str)]
        if not texts:
            prompts = [_Prompt(tokens, []) for tokens in inputs if not isinstance(tokens, str)]
        else:
            checked = [params.apply_pre_tokenization(tokenizer, {"prompt": text})["prompt"] for text in texts]
            checked = [shortened(tokenizer, text, params) for text in checked]
            spans = {"return_offsets_mapping": True} if getattr(tokenizer, "is_fast", False) else {}
            made = tokenizer(checked, **params.get_encode_kwargs(), **spans)
            none: list[list[tuple[int, int]]] = [[] for _ in checked]
            prompts = [_Prompt(*pair) for pair in zip(made["input_ids"], made.get("offset_mapping", none), strict=True)]
        for prompt in prompts:
            self._llm.renderer.validate_token_ids(prompt.tokens, parameter="input")
        return [self._within(prompt, params) for prompt in prompts]

    def _within(self, prompt: _Prompt, params: TokenizeParams) -> _Prompt:
        tokenizer = self._llm.renderer.get_tokenizer()
        parts = {"prompt_token_ids": prompt.tokens, "prompt_token_offsets": prompt.spans}
        fitting: Any = params.apply_post_tokenization(tokenizer, parts)  # Any: a TypedDict
        return _Prompt(fitting["prompt_token_ids"], fitting["prompt_token_offsets"])

    async def _encode(self, prompt: _Prompt, pool: PoolingParams, arrived: float, name: str) -> Encoded:
        ready = self._llm.renderer.process_for_engine({"prompt_token_ids": prompt.tokens}, arrived)
        async for output in self._llm.encode(ready, pool, name):
            # numpy has no bfloat16, so whatever the engine computes in leaves as float32.
            return Encoded(output.outputs.data.float().numpy(), prompt.tokens, prompt.spans)
        raise AssertionError("the engine ended an answer without one; this is a bug")


def _slices(inputs: Sequence[str] | Sequence[list[int]]) -> Iterator[Sequence[str] | Sequence[list[int]]]:
    """The inputs in their order, so many at once as are tokenized in one go."""
    begin = size = 0
    for end, each in enumerate(inputs):
        size += len(each)
        if end > begin and (end - begin == _SLICE_TEXTS or size > _SLICE_CHARACTERS):
            yield inputs[begin:end]
            begin, size = end, len(each)
    yield inputs[begin:]


def _several(given: Input) -> Sequence[str] | Sequence[list[int]]:
    """What was given, as several; nothing to encode is refused, as OpenAI refuses it.

    Source: https://platform.openai.com/docs/api-reference/embeddings/create#embeddings-create-input
    """
    inputs: Any = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given  # Any: mixed
    if not inputs:
        raise RequestError("input is empty; it must be a text, token ids, or a list of either", param="input")
    for index, each in enumerate(inputs):
        if not each:
            raise RequestError(f"input[{index}] is empty; there is nothing to encode", param="input")
    return inputs  # type: ignore[no-any-return]  # one kind of the union, which mypy cannot see
