"""What the streams of chats and of completions have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec

from appliance.core.sse import DONE_EVENT, event
from appliance.engines.vllm.errors import vendor_faults

if TYPE_CHECKING:
    from pydantic import BaseModel
    from vllm.entrypoints.serve.engine.protocol import UsageInfo
    from vllm.outputs import CompletionOutput, RequestOutput

Written = AsyncGenerator[bytes]

# Stands for the text where vLLM writes the chunk that the others are made from; no id or name holds it in quotes.
_TEXT = "the text goes here"
_PLACE = b'"the text goes here"'

# It keeps nothing between two texts.
_encode = msgspec.json.Encoder().encode


class StreamWriter(ABC):
    """Writes one stream of server-sent events out of what the engine gives for one answer to one prompt."""

    def __init__(self, serving: Any, request: Any, request_id: str, created: int, model: str) -> None:
        self._serving = serving  # Any: vLLM's serving classes and requests
        self._request = request
        self._same = {"id": request_id, "created": created, "model": model}
        options = request.stream_options
        self._has_usage = options is not None and bool(options.include_usage)

    @abstractmethod
    def _opening(self) -> bytes:
        """What comes before the first text; may be empty."""

    @abstractmethod
    def _chunk(self, text: str, ending: CompletionOutput | None) -> BaseModel:
        """A text as vLLM's object; `ending` is the engine's last output, None before."""

    @abstractmethod
    def _usage(self, summary: dict[str, Any]) -> bytes:
        """What comes after the last text, where the client wants the count of its tokens."""

    async def write(self, results: AsyncGenerator[RequestOutput]) -> Written:
        """The events; closing it closes `results`, which aborts the request in the engine.

        Raises:
            CallError: the request is at fault.
            EngineDeadError: the engine core died meanwhile.
        """
        with vendor_faults():
            head, tail = event_of(self._chunk(_TEXT, None)).split(_PLACE)
            prompt = answered = 0
            opening, last = self._opening(), None
            async with aclosing(results):
                async for result in results:
                    if result.prompt_token_ids is not None:
                        prompt = len(result.prompt_token_ids) + len(result.encoder_prompt_token_ids or ())
                    if opening:
                        yield opening
                        opening = b""
                    (last,) = result.outputs
                    if last.finish_reason is not None:
                        self._serving._raise_if_error(last.finish_reason, self._same["id"])
                    # A prompt that is read in several steps has no text yet.
                    if not (last.text or last.token_ids or answered):
                        continue
                    answered += len(last.token_ids)
                    ends = last.finish_reason is not None
                    yield event_of(self._ended(last)) if ends else head + _encode(last.text) + tail
            if self._has_usage:
                yield self._usage(self._summary(_counts(prompt, answered), last))
        yield DONE_EVENT

    def _ended(self, output: CompletionOutput) -> BaseModel:
        chunk = self._chunk(output.text, output)
        if not self._has_usage and self._serving.system_fingerprint is not None:
            chunk.system_fingerprint = self._serving.system_fingerprint  # type: ignore[attr-defined]  # vLLM's types
        return chunk

    def _summary(self, counts: UsageInfo, last: CompletionOutput | None) -> dict[str, Any]:
        from vllm.entrypoints.generate.base.protocol import PerRequestMetrics, SpeculativeDecodingMetrics

        drafts = last.spec_decode_metrics if last is not None else None
        speculative = SpeculativeDecodingMetrics(**drafts.to_dict()) if drafts else None
        return {
            **self._same,
            "choices": [],
            "usage": counts,
            "system_fingerprint": self._serving.system_fingerprint,
            "metrics": PerRequestMetrics(speculative_decoding=speculative) if speculative else None,
        }


def event_of(chunk: BaseModel, *, exclude_unset: bool = True, exclude_none: bool = False) -> bytes:
    """One server-sent event."""
    return event(chunk.model_dump_json(exclude_unset=exclude_unset, exclude_none=exclude_none).encode())


def _counts(prompt: int, answered: int) -> UsageInfo:
    from vllm.entrypoints.serve.engine.protocol import UsageInfo

    return UsageInfo(prompt_tokens=prompt, completion_tokens=answered, total_tokens=prompt + answered)
