"""Streams of chats and completions as server-sent events, the same as vLLM's at less work.

vLLM builds, checks and dumps two or three objects for each token. In a plain stream they differ in the text alone, so
vLLM's objects are dumped once, and the text of each token is put in. Anything else that a client may ask for (tools,
reasoning, log probabilities, several choices, echo, token ids, running usage) is left to vLLM's writers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

import msgspec

from appliance.core import sse
from appliance.engines.vllm.errors import translate_errors

if TYPE_CHECKING:
    from pydantic import BaseModel
    from vllm.outputs import CompletionOutput

# Stands for the text in the chunk that vLLM dumps; no id and no name contains it in quotes.
_PLACEHOLDER = "the text goes here"

# It has no state.
_encode_json = msgspec.json.Encoder().encode


def is_plain(serving: Any, request: Any) -> bool:  # Any: vLLM's serving classes and requests
    """Whether all chunks between the first and the last differ in their text alone."""
    options = request.stream_options
    has_logprobs = request.logprobs is not None and request.logprobs is not False
    return not (
        (request.n or 1) > 1
        or request.use_beam_search
        or request.echo
        or has_logprobs
        or request.return_token_ids
        or (options is not None and options.continuous_usage_stats)
        or serving.enable_force_include_usage
        or serving.enable_prompt_tokens_details
        or serving.enable_per_request_metrics
        or getattr(serving, "enable_log_outputs", False)
    )


class StreamWriter(ABC):
    """Writes the stream of one choice for one prompt."""

    has_indexes = False
    """Whether the outputs come in pairs with the index of their prompt."""

    def __init__(self, serving: Any, request: Any, request_id: str, created: int, model: str) -> None:
        self._serving = serving  # Any: vLLM's serving classes and requests
        self._request = request
        self._common = {"id": request_id, "created": created, "model": model}
        options = request.stream_options
        self._has_usage = options is not None and bool(options.include_usage)

    @abstractmethod
    def _first_event(self) -> bytes:
        """Return what comes before the first text; may be empty."""

    @abstractmethod
    def _chunk(self, text: str, last: CompletionOutput | None) -> BaseModel:
        """Return a text as vLLM's object; `last` is the last output, None before it."""

    @abstractmethod
    def _usage_event(self, fields: dict[str, Any]) -> bytes:
        """Return what comes after the last text if the client asked for usage."""

    async def write(self, outputs: AsyncGenerator[Any]) -> AsyncGenerator[bytes]:  # Any: RequestOutput, or a pair
        """Yield the events; closing this closes `outputs`, which aborts the request in the engine."""
        with translate_errors():
            head, tail = to_event(self._chunk(_PLACEHOLDER, None)).split(f'"{_PLACEHOLDER}"'.encode())
            prompt_tokens = output_tokens = 0
            first_event, last = self._first_event(), None
            async with aclosing(outputs):
                async for item in outputs:
                    output = item[1] if self.has_indexes else item
                    if output.prompt_token_ids is not None:
                        prompt_tokens = len(output.prompt_token_ids) + len(output.encoder_prompt_token_ids or ())
                    if first_event:
                        yield first_event
                        first_event = b""
                    (last,) = output.outputs
                    is_last = last.finish_reason is not None
                    if is_last:
                        self._serving._raise_if_error(last.finish_reason, self._common["id"])
                    # While a long prompt is computed in steps, there is no text yet.
                    if not (last.text or last.token_ids or output_tokens):
                        continue
                    output_tokens += len(last.token_ids)
                    yield self._last_event(last) if is_last else head + _encode_json(last.text) + tail
            if self._has_usage:
                yield self._usage_event(self._usage_fields(prompt_tokens, output_tokens, last))
        yield sse.DONE_EVENT

    def _last_event(self, output: CompletionOutput) -> bytes:
        chunk = self._chunk(output.text, output)
        if not self._has_usage and self._serving.system_fingerprint is not None:
            chunk.system_fingerprint = self._serving.system_fingerprint  # type: ignore[attr-defined]  # vLLM's types
        return to_event(chunk)

    def _usage_fields(self, prompt_tokens: int, output_tokens: int, last: CompletionOutput | None) -> dict[str, Any]:
        from vllm.entrypoints.generate.base.protocol import PerRequestMetrics, SpeculativeDecodingMetrics
        from vllm.entrypoints.serve.engine.protocol import UsageInfo

        drafts = last.spec_decode_metrics if last is not None else None
        speculative = SpeculativeDecodingMetrics(**drafts.to_dict()) if drafts else None
        total = prompt_tokens + output_tokens
        return {
            **self._common,
            "choices": [],
            "usage": UsageInfo(prompt_tokens=prompt_tokens, completion_tokens=output_tokens, total_tokens=total),
            "system_fingerprint": self._serving.system_fingerprint,
            "metrics": PerRequestMetrics(speculative_decoding=speculative) if speculative else None,
        }


class ChatStreamWriter(StreamWriter):
    """Writes a chat completion: the role, the texts, the finish reason."""

    def _first_event(self) -> bytes:
        role = self._serving.get_chat_request_role(self._request)
        chunk = self._delta({"role": role, "content": ""}, {"finish_reason": None})
        # vLLM sets these in the first chunk, although they are None.
        return to_event(chunk.model_copy(update={"prompt_token_ids": None, "prompt_text": None}))

    def _chunk(self, text: str, last: CompletionOutput | None) -> BaseModel:
        fields: dict[str, Any] = {"finish_reason": None, "token_ids": None}
        if last is not None:
            fields |= {"finish_reason": last.finish_reason, "stop_reason": last.stop_reason}
        return self._delta({"content": text}, fields)

    def _usage_event(self, fields: dict[str, Any]) -> bytes:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionStreamResponse

        return to_event(ChatCompletionStreamResponse(object="chat.completion.chunk", **fields), exclude_none=True)

    def _delta(self, delta: dict[str, Any], fields: dict[str, Any]) -> BaseModel:
        from vllm.entrypoints.generate.base.protocol import DeltaMessage
        from vllm.entrypoints.openai.chat_completion.protocol import (
            ChatCompletionResponseStreamChoice,
            ChatCompletionStreamResponse,
        )

        choice = ChatCompletionResponseStreamChoice(index=0, delta=DeltaMessage(**delta), logprobs=None, **fields)
        chunk: BaseModel = ChatCompletionStreamResponse(
            object="chat.completion.chunk", choices=[choice], **self._common
        )
        return chunk


class CompletionStreamWriter(StreamWriter):
    """Writes a completion: the texts, the last one with the finish reason."""

    has_indexes = True

    def _first_event(self) -> bytes:
        return b""

    def _chunk(self, text: str, last: CompletionOutput | None) -> BaseModel:
        from vllm.entrypoints.openai.completion.protocol import CompletionResponseStreamChoice, CompletionStreamResponse

        choice = CompletionResponseStreamChoice(
            index=0,
            text=text,
            logprobs=None,
            finish_reason=last and last.finish_reason,
            stop_reason=last and last.stop_reason,
            prompt_token_ids=None,
            token_ids=None,
        )
        chunk: BaseModel = CompletionStreamResponse(object="text_completion", choices=[choice], **self._common)
        return chunk

    def _usage_event(self, fields: dict[str, Any]) -> bytes:
        from vllm.entrypoints.openai.completion.protocol import CompletionStreamResponse

        # Only here vLLM sends fields that are unset.
        return to_event(CompletionStreamResponse(**fields), exclude_unset=False, exclude_none=True)


def to_event(chunk: BaseModel, *, exclude_unset: bool = True, exclude_none: bool = False) -> bytes:
    """Return an object of vLLM's as one server-sent event."""
    return sse.event(chunk.model_dump_json(exclude_unset=exclude_unset, exclude_none=exclude_none).encode())


async def encode_events(
    outputs: AsyncGenerator[Any], write: Callable[[AsyncGenerator[Any]], AsyncGenerator[str]]
) -> AsyncGenerator[bytes]:
    """Yield as bytes what one of vLLM's writers makes of the outputs."""
    with translate_errors():
        async with aclosing(after_first(outputs, write)) as events:
            async for event in events:
                yield event.encode()


async def after_first(
    outputs: AsyncGenerator[Any], write: Callable[[AsyncGenerator[Any]], AsyncGenerator[Any]]
) -> AsyncGenerator[Any]:
    """Yield what `write` makes of the outputs, once the engine has given the first.

    vLLM begins a stream before the engine has seen the request: an error would come too late for its status.
    """
    async with aclosing(outputs):
        first = []
        with suppress(StopAsyncIteration):
            first = [await anext(outputs)]
        async with aclosing(write(_chain(first, outputs))) as events:
            async for event in events:
                yield event


async def _chain(first: Sequence[Any], rest: AsyncGenerator[Any]) -> AsyncGenerator[Any]:
    for output in first:
        yield output
    async for output in rest:
        yield output
