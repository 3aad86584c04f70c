"""Counts the tokens of an engine's requests in the context of the current request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from appliance.core.request_context import RequestContext, current_context

if TYPE_CHECKING:
    from vllm.outputs import PoolingRequestOutput, RequestOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.metrics.stats import RequestStateStats


class UsageMeter:
    """Adds the tokens of one engine request to those of the context, which may need several engine requests."""

    def __init__(self, context: RequestContext, *, has_deltas: bool) -> None:
        self._context = context
        self._has_deltas = has_deltas
        self._stats: RequestStateStats | None = None
        self._has_begun = False
        # Tokens by choice, for outputs that repeat the earlier ones.
        self._counted: dict[int, int] = {}

    @classmethod
    @contextmanager
    def of_current_request(cls, params: SamplingParams) -> Iterator[UsageMeter | None]:
        """Count in this block; None outside of requests."""
        from vllm.sampling_params import RequestOutputKind

        context = current_context()
        if context is None:
            yield None
            return
        meter = cls(context, has_deltas=params.output_kind is RequestOutputKind.DELTA)
        try:
            yield meter
        finally:
            meter._record_times()

    def count(self, output: RequestOutput) -> None:
        """Add the tokens of the next output."""
        context = self._context
        if not self._has_begun:
            self._has_begun, self._stats = True, output.metrics
            _add_prompt(context, len(output.prompt_token_ids or ()))
            context.cached_tokens = (context.cached_tokens or 0) + (output.num_cached_tokens or 0)
        for choice in output.outputs:
            tokens = len(choice.token_ids)
            if not self._has_deltas:
                tokens, self._counted[choice.index] = tokens - self._counted.get(choice.index, 0), tokens
            context.output_tokens = (context.output_tokens or 0) + tokens

    def _record_times(self) -> None:
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


def count_prompt(output: PoolingRequestOutput) -> None:
    """Add the tokens of a pooled text to those of the current request."""
    if (context := current_context()) is not None:
        _add_prompt(context, len(output.prompt_token_ids))


def _add_prompt(context: RequestContext, tokens: int) -> None:
    context.is_metered = True
    context.prompt_tokens = (context.prompt_tokens or 0) + tokens
