"""Several choices for one prompt, each a sequence of its own.

vLLM hands all of them to its engine at once; here each one waits for its turn.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from copy import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams

    Outputs = AsyncGenerator[RequestOutput]
    Generate = Callable[[SamplingParams, str], Outputs]


def choices(generate: Generate, params: SamplingParams, request_id: str) -> Outputs:
    """The outputs of a request as vLLM gives them; `generate` makes those of one choice, by parameters and an id."""
    if params.n == 1:
        return generate(params, request_id)
    return _merged([generate(_of_one(params, index), f"{request_id}-{index}") for index in range(params.n)], params)


def _of_one(params: SamplingParams, index: int) -> SamplingParams:
    """The parameters of one choice: as vLLM's own, seeded apart."""
    one = copy(params)
    one.n = 1
    if params.seed is not None:
        one.seed = params.seed + index
    return one


async def _merged(streams: list[Any], params: SamplingParams) -> Outputs:  # Any: AsyncGenerator[RequestOutput]
    from vllm.sampling_params import RequestOutputKind
    from vllm.utils.async_utils import merge_async_iterators

    is_whole = params.output_kind is RequestOutputKind.FINAL_ONLY
    whole: dict[int, RequestOutput] = {}
    left = len(streams)
    async with aclosing(merge_async_iterators(*streams)) as outputs:
        async for index, output in outputs:
            for choice in output.outputs:
                choice.index = index
            left -= output.finished
            output.finished = not left
            if not is_whole:
                yield output
            elif output.outputs:
                whole[index] = output
    if is_whole:
        answer = whole[0]
        answer.outputs = [choice for _, each in sorted(whole.items()) for choice in each.outputs]
        answer.finished = True
        yield answer
