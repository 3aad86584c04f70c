"""The stream of a completion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from appliance.engines.vllm.sse.writer import StreamWriter, event_of

if TYPE_CHECKING:
    from pydantic import BaseModel
    from vllm.outputs import CompletionOutput


class CompletionWriter(StreamWriter):
    """Writes a completion: the texts, the last with the reason for the end."""

    def _opening(self) -> bytes:
        return b""

    def _chunk(self, text: str, ending: CompletionOutput | None) -> BaseModel:
        from vllm.entrypoints.openai.completion.protocol import CompletionResponseStreamChoice, CompletionStreamResponse

        choice = CompletionResponseStreamChoice(
            index=0,
            text=text,
            logprobs=None,
            finish_reason=ending and ending.finish_reason,
            stop_reason=ending and ending.stop_reason,
            prompt_token_ids=None,
            token_ids=None,
        )
        chunk: BaseModel = CompletionStreamResponse(object="text_completion", choices=[choice], **self._same)
        return chunk

    def _usage(self, summary: dict[str, Any]) -> bytes:
        from vllm.entrypoints.openai.completion.protocol import CompletionStreamResponse

        # Here, and here alone, vLLM sends fields that nobody set.
        return event_of(CompletionStreamResponse(**summary), exclude_unset=False, exclude_none=True)
