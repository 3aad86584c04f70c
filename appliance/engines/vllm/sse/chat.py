"""The stream of a chat completion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from appliance.engines.vllm.sse.writer import StreamWriter, event_of

if TYPE_CHECKING:
    from pydantic import BaseModel
    from vllm.outputs import CompletionOutput

_OBJECT = "chat.completion.chunk"


class ChatWriter(StreamWriter):
    """Writes a chat completion: the role, the texts, the reason for the end."""

    def _opening(self) -> bytes:
        role = self._serving.get_chat_request_role(self._request)
        chunk = self._of({"role": role, "content": ""}, {"finish_reason": None})
        # vLLM says of the first chunk what it leaves out, too.
        return event_of(chunk.model_copy(update={"prompt_token_ids": None, "prompt_text": None}))

    def _chunk(self, text: str, ending: CompletionOutput | None) -> BaseModel:
        how: dict[str, Any] = {"finish_reason": None, "token_ids": None}
        if ending is not None:
            how |= {"finish_reason": ending.finish_reason, "stop_reason": ending.stop_reason}
        return self._of({"content": text}, how)

    def _usage(self, summary: dict[str, Any]) -> bytes:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionStreamResponse

        return event_of(ChatCompletionStreamResponse(object=_OBJECT, **summary), exclude_none=True)

    def _of(self, delta: dict[str, Any], how: dict[str, Any]) -> BaseModel:
        from vllm.entrypoints.generate.base.protocol import DeltaMessage
        from vllm.entrypoints.openai.chat_completion.protocol import (
            ChatCompletionResponseStreamChoice,
            ChatCompletionStreamResponse,
        )

        choice = ChatCompletionResponseStreamChoice(index=0, delta=DeltaMessage(**delta), logprobs=None, **how)
        chunk: BaseModel = ChatCompletionStreamResponse(object=_OBJECT, choices=[choice], **self._same)
        return chunk
