"""Several choices for one prompt, with vLLM's own parameters and outputs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from appliance.engines.vllm.async_llm import generate_choices

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Engine:
    """Writes two tokens for each choice, and notes what it was asked."""

    def __init__(self, *, fails: bool = False) -> None:
        self.asked: list[tuple[int | None, str]] = []
        self.closed = 0
        self._fails = fails

    async def generate(self, params: Any, name: str) -> AsyncGenerator[Any]:
        """Each choice knows itself as the first, as the only one it is."""
        from vllm.outputs import CompletionOutput, RequestOutput
        from vllm.sampling_params import RequestOutputKind

        assert params.n == 1
        self.asked.append((params.seed, name))
        has_deltas = params.output_kind is RequestOutputKind.DELTA
        try:
            for last in (False, True) if has_deltas else (True,):
                await asyncio.sleep(0)
                if self._fails and name.endswith("1"):
                    raise ValueError("broke")
                reason = "length" if last else None
                each = CompletionOutput(0, name, [1], None, None, finish_reason=reason)
                yield RequestOutput(name, None, [1, 2], None, [each], finished=last)
        finally:
            self.closed += 1


def _params(n: int, *, has_deltas: bool, seed: int | None = None) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    kind = RequestOutputKind.DELTA if has_deltas else RequestOutputKind.FINAL_ONLY
    return SamplingParams(n=n, seed=seed, output_kind=kind)


async def test_a_whole_answer_has_all_choices_in_their_order() -> None:
    """One output, at the end, as vLLM's own."""
    outputs = [output async for output in generate_choices(Engine().generate, _params(3, has_deltas=False), "a")]

    assert [(output.finished, output.prompt_token_ids) for output in outputs] == [(True, [1, 2])]
    assert [(choice.index, choice.text) for choice in outputs[0].outputs] == [(0, "a-0"), (1, "a-1"), (2, "a-2")]


async def test_a_stream_names_the_choice_of_each_piece() -> None:
    """The request is finished with the last piece of the last choice."""
    outputs = [output async for output in generate_choices(Engine().generate, _params(3, has_deltas=True), "a")]

    pieces = [(choice.index, choice.text) for output in outputs for choice in output.outputs]
    assert sorted(pieces) == [(index, f"a-{index}") for index in (0, 0, 1, 1, 2, 2)]
    assert [output.finished for output in outputs] == [False] * 5 + [True]


@pytest.mark.parametrize(("seed", "seeds"), [(7, [7, 8, 9]), (None, [None] * 3)])
async def test_seeds_are_vllms_own(seed: int | None, seeds: list[int | None]) -> None:
    """Each choice is seeded apart, as `ParentRequest` does it."""
    engine = Engine()
    [_ async for _ in generate_choices(engine.generate, _params(3, has_deltas=False, seed=seed), "a")]

    assert [asked for asked, _ in engine.asked] == seeds


async def test_the_first_error_ends_all_generate_choices() -> None:
    """What is under way is closed."""
    engine = Engine(fails=True)
    with pytest.raises(ValueError, match="broke"):
        [_ async for _ in generate_choices(engine.generate, _params(3, has_deltas=False), "a")]

    assert engine.closed == 3
