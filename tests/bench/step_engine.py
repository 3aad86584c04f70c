"""A model that takes the time of an engine with continuous batching, and computes nothing.

Every step serves all running sequences; a request that comes during a step waits for its end. A step takes `step_ms`,
`sequence_ms` for each sequence and `prefill_ms` for each word of a new prompt.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from appliance.openai import OpenAIGenerativeModel
from appliance.openai.types import ChatCompletionChunk, ChatCompletionRequest


@dataclass(eq=False)
class _Sequence:
    words: int
    token: asyncio.Event = field(default_factory=asyncio.Event)


class Steps:
    """The steps of an engine."""

    def __init__(self, step_ms: float = 10, sequence_ms: float = 0.2, prefill_ms: float = 0.4) -> None:
        self._step, self._per_sequence, self._per_word = step_ms / 1000, sequence_ms / 1000, prefill_ms / 1000
        self._new: list[_Sequence] = []
        self._running: list[_Sequence] = []
        self._stepping: asyncio.Task[None] | None = None

    async def tokens(self, words: int, count: int) -> AsyncGenerator[None]:
        """Yield for each token of the answer to a prompt of so many words."""
        sequence = _Sequence(words)
        self._new.append(sequence)
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.create_task(self._run())
        try:
            for _ in range(count):
                await sequence.token.wait()
                sequence.token.clear()
                yield
        finally:
            for sequences in (self._new, self._running):
                if sequence in sequences:
                    sequences.remove(sequence)

    async def _run(self) -> None:
        while self._new or self._running:
            words = sum(sequence.words for sequence in self._new)
            self._running += self._new
            self._new.clear()
            served = list(self._running)
            await asyncio.sleep(self._step + self._per_sequence * len(served) + self._per_word * words)
            for sequence in served:
                sequence.token.set()


class StepEngine(OpenAIGenerativeModel):
    """Answers with as many words as were requested."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._steps = Steps()

    async def create_chat_completion(
        self, request: ChatCompletionRequest, raw_request: object = None, context: object = None
    ) -> AsyncGenerator[ChatCompletionChunk]:
        """Yield a word for each step."""
        words = len(str(request.messages[-1]["content"]).split())
        async for _ in self._steps.tokens(words, request.max_tokens or 16):
            yield ChatCompletionChunk.model_validate({"choices": [{"delta": {"content": "word "}}]})
