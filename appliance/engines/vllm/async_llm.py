"""vLLM's AsyncLLM with admission of each sequence, limits of structured outputs, and tokens counted for the request."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from copy import copy
from typing import TYPE_CHECKING, Any

from appliance.core.errors import RequestError
from appliance.core.request_context import RequestContext, current_context
from appliance.engines.vllm import patches
from appliance.engines.vllm.structured_outputs import StructuredOutputsCheck
from appliance.limits.queue import Sequence, run_sequence

if TYPE_CHECKING:
    from vllm.outputs import PoolingRequestOutput, RequestOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import RequestOutputCollector
    from vllm.v1.metrics.stats import RequestStateStats

    Outputs = AsyncGenerator[RequestOutput]
    Generate = Callable[[SamplingParams, str], Outputs]


def async_llm_class(structured_outputs: StructuredOutputsCheck) -> type[AsyncLLM]:
    """Return a subclass of AsyncLLM whose sequences wait for their turn, and whose tokens are counted.

    Work of no request neither waits nor is counted. `structured_outputs` is closed with the engine.
    """
    from vllm.v1.engine.async_llm import AsyncLLM

    class AdmittingLLM(AsyncLLM):  # type: ignore[misc]  # vLLM has no types for us
        # Any: whatever vLLM takes.
        async def add_request(self, *args: Any, **kwargs: Any) -> RequestOutputCollector:
            collector = await super().add_request(*args, **kwargs)
            patches.use_single_waiter_event(collector)
            return collector

        def generate(self, prompt: Any, sampling_params: Any, request_id: str, **kwargs: Any) -> Outputs:
            def generate_one(params: SamplingParams, name: str) -> Outputs:
                outputs: Outputs = super(AdmittingLLM, self).generate(prompt, params, name, **kwargs)
                return outputs

            # Not a generator itself: each one costs time for each token.
            return _generate(generate_one, self.vllm_config, structured_outputs, sampling_params, request_id)

        async def encode(self, *args: Any, **kwargs: Any) -> AsyncGenerator[PoolingRequestOutput]:
            async with aclosing(_in_turn(super().encode(*args, **kwargs))) as outputs:
                async for output in outputs:
                    if (context := current_context()) is not None:
                        _count_prompt(context, output)
                    yield output

        def shutdown(self, timeout: float | None = None) -> None:
            structured_outputs.close()
            super().shutdown(timeout)

    return AdmittingLLM


async def _generate(
    generate_one: Generate,
    config: Any,  # Any: vLLM's config
    structured_outputs: StructuredOutputsCheck,
    params: SamplingParams,
    request_id: str,
) -> Outputs:
    from vllm.exceptions import GenerationError

    await structured_outputs.require_allowed(params.structured_outputs)
    _require_computable(config, params)
    context = current_context()
    meter = None if context is None else UsageMeter(context, params)
    async with AsyncExitStack() as stack:
        turn, is_first = None, True
        if params.n == 1:
            # Not through `_in_turn`, which is a generator too.
            turn = await stack.enter_async_context(run_sequence())
            outputs = generate_one(params, request_id)
        else:
            outputs = generate_choices(generate_one, params, request_id)
        await stack.enter_async_context(aclosing(outputs))
        if meter is not None:
            stack.callback(meter.record_times)
        async for output in outputs:
            if turn is not None:
                _report(turn, output, is_first=is_first)
                is_first = False
            for choice in output.outputs:
                if choice.finish_reason == "error":
                    # As vLLM's writers do, but before they have written anything.
                    raise GenerationError
            if meter is not None:
                meter.count(output)
            yield output


async def generate_choices(generate: Generate, params: SamplingParams, request_id: str) -> Outputs:
    """Yield the outputs of several choices as vLLM does; each is a sequence that waits for its own turn.

    vLLM gives all choices to the engine at once. `generate` makes the outputs of one.
    """
    from vllm.sampling_params import RequestOutputKind
    from vllm.utils.async_utils import merge_async_iterators

    streams = []
    for index in range(params.n):
        one = copy(params)
        one.n = 1
        if params.seed is not None:
            # As vLLM seeds the choices of a request.
            one.seed = params.seed + index
        streams.append(_in_turn(generate(one, f"{request_id}-{index}")))
    is_final_only, unfinished = params.output_kind is RequestOutputKind.FINAL_ONLY, params.n
    finals: dict[int, RequestOutput] = {}
    async with aclosing(merge_async_iterators(*streams)) as outputs:
        async for index, output in outputs:
            for choice in output.outputs:
                choice.index = index
            unfinished -= output.finished
            output.finished = not unfinished
            if not is_final_only:
                yield output
            elif output.outputs:
                finals[index] = output
    if is_final_only:
        merged = finals[0]
        merged.outputs = [choice for _, final in sorted(finals.items()) for choice in final.outputs]
        merged.finished = True
        yield merged


async def _in_turn(outputs: AsyncGenerator[Any]) -> AsyncGenerator[Any]:
    async with run_sequence() as turn, aclosing(outputs):
        is_first = True
        async for output in outputs:
            if turn is not None:
                _report(turn, output, is_first=is_first)
            is_first = False
            yield output


def _report(turn: Sequence, output: Any, *, is_first: bool) -> None:  # Any: vLLM's outputs of both kinds
    if is_first:
        turn.first_token()
    # The reader of the last output may not come back for the end of the stream.
    if output.finished:
        turn.end(is_success=True)


def _require_computable(config: Any, params: SamplingParams) -> None:  # Any: vLLM's config
    """Raise RequestError for what would end the engine: vLLM's CPU kernels of LoRA take logits of new tokens alone."""
    from vllm.platforms import current_platform

    if params.prompt_logprobs is not None and config.lora_config is not None and current_platform.is_cpu():
        raise RequestError(
            "Log probabilities of the prompt (prompt_logprobs, or echo with logprobs) are not available: this model "
            "has adapters, and computes on a CPU.",
            param="prompt_logprobs",
        )


class UsageMeter:
    """Adds the tokens of one engine request to those of the context, which may need several engine requests."""

    def __init__(self, context: RequestContext, params: SamplingParams) -> None:
        from vllm.sampling_params import RequestOutputKind

        self._context = context
        self._has_deltas = params.output_kind is RequestOutputKind.DELTA
        self._stats: RequestStateStats | None = None
        self._has_begun = False
        # Tokens by choice, for outputs that repeat the earlier ones.
        self._counted: dict[int, int] = {}

    def count(self, output: RequestOutput) -> None:
        context = self._context
        if not self._has_begun:
            self._has_begun, self._stats = True, output.metrics
            _count_prompt(context, output)
            context.cached_tokens = (context.cached_tokens or 0) + (output.num_cached_tokens or 0)
        for choice in output.outputs:
            tokens = len(choice.token_ids)
            if not self._has_deltas:
                tokens, self._counted[choice.index] = tokens - self._counted.get(choice.index, 0), tokens
            context.output_tokens = (context.output_tokens or 0) + tokens

    def record_times(self) -> None:
        """Copy the engine's times, which are on the clock that all processes of a machine share."""
        context, stats = self._context, self._stats
        # 0 is a step that was not reached; the clock of another machine is of no use.
        if stats is None or stats.queued_ts < context.began:
            return
        if stats.scheduled_ts and context.scheduled is None:
            context.queued, context.scheduled = context.queued or stats.queued_ts, stats.scheduled_ts
        if stats.first_token_ts:
            context.first = context.first or stats.first_token_ts
            context.last = max(context.last or 0, stats.last_token_ts)


def _count_prompt(context: RequestContext, output: RequestOutput | PoolingRequestOutput) -> None:
    context.is_metered = True
    context.prompt_tokens = (context.prompt_tokens or 0) + len(output.prompt_token_ids or ())
