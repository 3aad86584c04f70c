"""vLLM's engine as it is, with a turn for each sequence, and its tokens written down on their way out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from appliance.config.engine import StructuredOutputsConfig
from appliance.core.errors import RequestError
from appliance.core.request_context import RequestContext, current_context
from appliance.engines.vllm.choices import choices
from appliance.engines.vllm.grammar_check import GrammarCheck
from appliance.engines.vllm.single_waiter_event import SingleWaiterEvent
from appliance.engines.vllm.structured_outputs import require_compilable
from appliance.limits import sequence

if TYPE_CHECKING:
    from vllm.outputs import PoolingRequestOutput, RequestOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import RequestOutputCollector
    from vllm.v1.metrics.stats import RequestStateStats

    _Outputs = AsyncGenerator[RequestOutput]


def metered(limits: StructuredOutputsConfig, grammars: GrammarCheck) -> type[AsyncLLM]:
    """A class of engines that compute the sequences of a request in turns with those of others, and count their tokens
    into its record; what belongs to no request waits for nobody, and nobody counts it. They close `grammars`.
    """
    from vllm.v1.engine.async_llm import AsyncLLM

    class MeteredLLM(AsyncLLM):  # type: ignore[misc]  # vLLM has no types for us
        # Any: whatever vLLM takes.
        async def add_request(self, *args: Any, **others: Any) -> RequestOutputCollector:
            collector = await super().add_request(*args, **others)
            # Nobody waits for it yet.
            collector.ready = SingleWaiterEvent(asyncio.get_running_loop())
            return collector

        async def generate(self, prompt: Any, sampling_params: Any, request_id: str, **others: Any) -> _Outputs:
            await _require_possible(self.vllm_config, sampling_params, limits, grammars)
            meter = _meter(sampling_params)

            def one(params: Any, name: str) -> _Outputs:
                return _in_turn(super(MeteredLLM, self).generate(prompt, params, name, **others))

            async with aclosing(choices(one, sampling_params, request_id)) as outputs:
                try:
                    async for output in outputs:
                        _require_good(output)
                        if meter is not None:
                            meter.count(output)
                        yield output
                finally:
                    if meter is not None:
                        meter.end()

        async def encode(self, *args: Any, **others: Any) -> AsyncGenerator[PoolingRequestOutput]:
            record = current_context()
            async with aclosing(_in_turn(super().encode(*args, **others))) as outputs:
                async for output in outputs:
                    _count_prompt(record, output)
                    yield output

        def shutdown(self, timeout: float | None = None) -> None:
            grammars.close()
            super().shutdown(timeout)

    return MeteredLLM


async def _in_turn(outputs: AsyncGenerator[Any]) -> AsyncGenerator[Any]:
    """The outputs of one sequence, once it is its turn."""
    async with sequence() as turn, aclosing(outputs):
        is_first = True
        async for output in outputs:
            if turn is not None:
                if is_first:
                    turn.first()
                # Whoever reads the last output may not come back for the end.
                if output.finished:
                    turn.end(is_answered=True)
            is_first = False
            yield output


def _count_prompt(record: RequestContext | None, output: PoolingRequestOutput) -> None:
    if record is not None:
        record.is_metered = True
        record.prompt_tokens = (record.prompt_tokens or 0) + len(output.prompt_token_ids)


def _meter(params: SamplingParams) -> UsageMeter | None:
    """What counts the tokens of this request; None where nobody wants to know."""
    from vllm.sampling_params import RequestOutputKind

    record = current_context()
    return None if record is None else UsageMeter(record, has_deltas=params.output_kind is RequestOutputKind.DELTA)


async def _require_possible(
    config: Any,  # Any: vLLM's config and parameters
    params: Any,
    limits: StructuredOutputsConfig,
    grammars: GrammarCheck,
) -> None:
    """Refuse what would hold up the engine, or end it: vLLM's CPU kernels of LoRA take logits for new tokens alone.

    Raises:
        RequestError: the request asks for those of its prompt, or to be held to too large or complex a schema.
        UnavailableError: nothing can find out how complex it is.
    """
    from vllm.platforms import current_platform

    require_compilable(params.structured_outputs, limits)
    if params.prompt_logprobs is not None and config.lora_config is not None and current_platform.is_cpu():
        raise RequestError(
            "Log probabilities of the prompt (prompt_logprobs, or echo with logprobs) are not available: this model "
            "has adapters, and computes on a CPU.",
            param="prompt_logprobs",
        )
    await grammars.require_compilable(params.structured_outputs)


def _require_good(output: RequestOutput) -> None:
    """Raise what vLLM's writers raise of an output, before they have written anything."""
    from vllm.exceptions import GenerationError

    if any(each.finish_reason == "error" for each in output.outputs):
        raise GenerationError


class UsageMeter:
    """The tokens of one request of the engine, added to those of the record: a call may need several of them."""

    def __init__(self, record: RequestContext, *, has_deltas: bool) -> None:
        self._record = record
        self._has_deltas = has_deltas
        self._stats: RequestStateStats | None = None
        self._has_begun = False
        # By the index of the answer, where each output repeats the ones before it.
        self._seen: dict[int, int] = {}

    def count(self, output: RequestOutput) -> None:
        """Take in what the engine gave next."""
        if not self._has_begun:
            self._begin(output)
        record = self._record
        for each in output.outputs:
            tokens = len(each.token_ids)
            if not self._has_deltas:
                tokens, self._seen[each.index] = tokens - self._seen.get(each.index, 0), tokens
            record.output_tokens = (record.output_tokens or 0) + tokens

    def end(self) -> None:
        """Take over what the engine knows of its moments: it reads the clock that all processes of a machine share."""
        record, stats = self._record, self._stats
        # What was never reached is 0; the clock of another machine is of no use.
        if stats is None or stats.queued_ts < record.began:
            return
        if stats.scheduled_ts and record.scheduled is None:
            record.queued, record.scheduled = record.queued or stats.queued_ts, stats.scheduled_ts
        if stats.first_token_ts:
            record.first = record.first or stats.first_token_ts
            record.last = max(record.last or 0, stats.last_token_ts)

    def _begin(self, output: RequestOutput) -> None:
        self._has_begun, self._stats, record = True, output.metrics, self._record
        record.is_metered = True
        record.prompt_tokens = (record.prompt_tokens or 0) + len(output.prompt_token_ids or ())
        record.cached_tokens = (record.cached_tokens or 0) + (output.num_cached_tokens or 0)
