"""Streams of chats and completions as server-sent events, the same as vLLM's at less work.

vLLM builds, checks and dumps two or three objects for each token. In a plain stream they differ in the text alone, so
vLLM's objects are dumped once, and the text of each token is put in. Anything else that a client may ask for (tools,
reasoning, log probabilities, several choices, echo, token ids, running usage) is left to vLLM's writers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec

from appliance.core import sse
from appliance.core.model import SendChunk
from appliance.engines.vllm.direct_stream import DirectStream
from appliance.engines.vllm.errors import translate_errors

if TYPE_CHECKING:
    from pydantic import BaseModel
    from vllm.outputs import CompletionOutput

# Stands for the text in the chunk that vLLM dumps; no id and no name contains it in quotes.
_PLACEHOLDER = "the text goes here"

# It has no state.
_encode_json = msgspec.json.Encoder().encode


def is_plain(serving: Any, request: Any) -> bool:  # Any: vLLM's serving classes and requests, here and below
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


def write_chat(
    serving: Any,
    request: Any,
    outputs: AsyncGenerator[Any],
    request_id: str,
    created: int,
    model: str,
    send: SendChunk | None = None,
) -> AsyncGenerator[bytes]:
    """Write a plain chat completion: the role, the texts, the finish reason."""
    from vllm.entrypoints.generate.base.protocol import DeltaMessage
    from vllm.entrypoints.openai.chat_completion import protocol

    common = {"id": request_id, "object": "chat.completion.chunk", "created": created, "model": model}

    def to_object(fields: dict[str, Any], **delta: str) -> BaseModel:
        choice = protocol.ChatCompletionResponseStreamChoice(
            index=0, delta=DeltaMessage(**delta), logprobs=None, **{"finish_reason": None, **fields}
        )
        chunk: BaseModel = protocol.ChatCompletionStreamResponse(choices=[choice], **common)
        return chunk

    def to_chunk(text: str, last: CompletionOutput | None) -> BaseModel:
        end = {"finish_reason": last.finish_reason, "stop_reason": last.stop_reason} if last else {}
        return to_object({"token_ids": None, **end}, content=text)

    def to_usage_event(fields: dict[str, Any]) -> bytes:
        return _to_event(protocol.ChatCompletionStreamResponse(**common, **fields), exclude_none=True)

    first = to_object({}, role=serving.get_chat_request_role(request), content="")
    # vLLM sets these in the first chunk, although they are None.
    first = first.model_copy(update={"prompt_token_ids": None, "prompt_text": None})
    return _PlainWriter(serving, request, to_chunk, to_usage_event, send, _to_event(first)).write(outputs)


def write_completion(
    serving: Any,
    request: Any,
    outputs: AsyncGenerator[Any],
    request_id: str,
    created: int,
    model: str,
    send: SendChunk | None = None,
) -> AsyncGenerator[bytes]:
    """Write the plain completion of one prompt; its `outputs` come in pairs with the index of the prompt."""
    from vllm.entrypoints.openai.completion.protocol import CompletionResponseStreamChoice, CompletionStreamResponse

    common = {"id": request_id, "object": "text_completion", "created": created, "model": model}

    def to_chunk(text: str, last: CompletionOutput | None) -> BaseModel:
        fields: dict[str, Any] = dict.fromkeys(("logprobs", "prompt_token_ids", "token_ids"))
        fields |= {"finish_reason": last and last.finish_reason, "stop_reason": last and last.stop_reason}
        choice = CompletionResponseStreamChoice(index=0, text=text, **fields)
        chunk: BaseModel = CompletionStreamResponse(choices=[choice], **common)
        return chunk

    def to_usage_event(fields: dict[str, Any]) -> bytes:
        # Only here vLLM sends fields that are unset.
        return _to_event(CompletionStreamResponse(**common, **fields), exclude_unset=False, exclude_none=True)

    return _PlainWriter(serving, request, to_chunk, to_usage_event, send).write(outputs, has_indexes=True)


class _PlainWriter:
    """Writes the events of one plain stream, in which the chunks between the first and the last differ in their text.

    With `send`, those may be sent directly, while this waits for an output.
    """

    def __init__(
        self,
        serving: Any,
        request: Any,
        to_chunk: Callable[[str, CompletionOutput | None], BaseModel],
        to_usage_event: Callable[[dict[str, Any]], bytes],
        send: SendChunk | None,
        first_event: bytes = b"",
    ) -> None:
        self._serving, self._to_chunk, self._to_usage_event = serving, to_chunk, to_usage_event
        self._send, self._first_event = send, first_event
        self._has_usage = request.stream_options is not None and bool(request.stream_options.include_usage)
        self._head, self._tail = _to_event(to_chunk(_PLACEHOLDER, None)).split(f'"{_PLACEHOLDER}"'.encode())
        self._direct: DirectStream | None = None
        self._prompt_tokens = self._output_tokens = 0
        self._last: CompletionOutput | None = None
        self._has_text = False

    async def write(self, outputs: AsyncGenerator[Any], *, has_indexes: bool = False) -> AsyncGenerator[bytes]:
        """Yield the events; closing this closes `outputs`, which aborts the request in the engine.

        Events that are known at the same time are one chunk: the role and the first text, and all that ends the stream.
        """
        with translate_errors():
            try:
                async with aclosing(outputs):
                    async for item in outputs:
                        if events := self._events(item[1] if has_indexes else item):
                            yield events
                        while self._direct is not None and (events := self._direct.take_events()):
                            yield events
            finally:
                if self._direct is not None:
                    self._direct.close()
            end = self._last_event()
            if self._has_usage:
                end += self._to_usage_event(self._usage_fields())
        yield end + sse.DONE_EVENT

    def _events(self, output: Any) -> bytes:  # Any: vLLM's output
        """Return the events of an output, except that of the last one."""
        if output.prompt_token_ids is not None:
            self._prompt_tokens = len(output.prompt_token_ids) + len(output.encoder_prompt_token_ids or ())
        events, self._first_event = self._first_event, b""
        if self._direct is not None:
            # They are older than this output.
            events += self._direct.take_events()
        (last,) = output.outputs
        self._last = last
        is_last = last.finish_reason is not None
        if is_last:
            self._serving._raise_if_error(last.finish_reason, output.request_id)
        # While a long prompt is computed in steps, there is no text yet.
        if not (last.text or last.token_ids or self._output_tokens):
            return events
        self._output_tokens += len(last.token_ids)
        self._has_text = True
        if is_last:
            return events
        if self._send is not None:
            self._direct = DirectStream.attach(
                self._serving.engine_client, output.request_id, self._head, self._tail, self._send
            )
            self._send = None
        return events + self._head + _encode_json(last.text) + self._tail

    def _last_event(self) -> bytes:
        last = self._last
        if last is None or last.finish_reason is None or not self._has_text:
            return b""
        chunk = self._to_chunk(last.text, last)
        if not self._has_usage and self._serving.system_fingerprint is not None:
            chunk.system_fingerprint = self._serving.system_fingerprint  # type: ignore[attr-defined]  # vLLM's
        return _to_event(chunk)

    def _usage_fields(self) -> dict[str, Any]:
        from vllm.entrypoints.generate.base.protocol import PerRequestMetrics, SpeculativeDecodingMetrics
        from vllm.entrypoints.serve.engine.protocol import UsageInfo

        drafts = self._last.spec_decode_metrics if self._last is not None else None
        speculative = SpeculativeDecodingMetrics(**drafts.to_dict()) if drafts else None
        prompt, output = self._prompt_tokens, self._output_tokens + (self._direct.tokens if self._direct else 0)
        return {
            "choices": [],
            "usage": UsageInfo(prompt_tokens=prompt, completion_tokens=output, total_tokens=prompt + output),
            "system_fingerprint": self._serving.system_fingerprint,
            "metrics": PerRequestMetrics(speculative_decoding=speculative) if speculative else None,
        }


def _to_event(chunk: BaseModel, *, exclude_unset: bool = True, exclude_none: bool = False) -> bytes:
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
        first = await anext(outputs, None)

        async def all_outputs() -> AsyncGenerator[Any]:
            if first is not None:
                yield first
                async for output in outputs:
                    yield output

        async with aclosing(write(all_outputs())) as events:
            async for event in events:
                yield event
