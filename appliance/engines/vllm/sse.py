"""Streams of chats and completions as server-sent events, the same as vLLM's at less work.

vLLM builds, checks and dumps two or three objects for each token. In a plain stream they differ in the text alone, and
those of two streams in the id, the time and the model too. So vLLM's objects are dumped once, and these are put in.
Anything else that a client may ask for (tools, reasoning, log probabilities, several choices, echo, token ids, running
usage) is left to vLLM's writers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from appliance.core import sse
from appliance.core.model import SendChunk
from appliance.engines.vllm.direct_stream import DirectStream
from appliance.engines.vllm.errors import translate_errors

if TYPE_CHECKING:
    from pydantic import BaseModel
    from vllm.outputs import CompletionOutput

# Stands for the text in the chunk that vLLM dumps, before anything that a client chooses.
_PLACEHOLDER = "the text goes here"

# The fields before the choices, in a chunk of which only what comes after them is used.
_NO_STREAM: Mapping[str, Any] = {"id": "", "created": 0, "model": ""}

# Few roles and reasons are usual, but clients may choose others.
_cached = lru_cache(maxsize=64)

Around = tuple[bytes, bytes]
"""What is before and after the text in an event."""

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
    common = {"id": request_id, "object": "chat.completion.chunk", "created": created, "model": model}

    def to_usage_event(fields: dict[str, Any]) -> bytes:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionStreamResponse

        return _to_event(ChatCompletionStreamResponse(**common, **fields), exclude_none=True)

    head = _head(common)
    first = head + _chat_role(serving.get_chat_request_role(request))
    return _PlainWriter(serving, request, head, _chat_text, to_usage_event, send, first).write(outputs)


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
    common = {"id": request_id, "object": "text_completion", "created": created, "model": model}

    def to_usage_event(fields: dict[str, Any]) -> bytes:
        from vllm.entrypoints.openai.completion.protocol import CompletionStreamResponse

        # Only here vLLM sends fields that are unset.
        return _to_event(CompletionStreamResponse(**common, **fields), exclude_unset=False, exclude_none=True)

    writer = _PlainWriter(serving, request, _head(common), _completion_text, to_usage_event, send)
    return writer.write(outputs, has_indexes=True)


@_cached
def _chat_role(role: str) -> bytes:
    """Return the first event of a chat after its head."""
    # vLLM sets these in the first chunk, although they are None.
    return _after_head(_chat_chunk({}, {"prompt_token_ids": None, "prompt_text": None}, role=role, content=""))


@_cached
def _chat_text(finish_reason: str | None, stop_reason: int | str | None, fingerprint: str | None) -> Around:
    """Return what is around the text in an event of a chat, after its head; only the last has reasons."""
    end = {"finish_reason": finish_reason, "stop_reason": stop_reason} if finish_reason else {}
    return _around_text(_chat_chunk({"token_ids": None, **end}, _if_set(fingerprint), content=_PLACEHOLDER))


def _chat_chunk(choice: dict[str, Any], fields: dict[str, Any], **delta: str) -> BaseModel:
    from vllm.entrypoints.generate.base.protocol import DeltaMessage
    from vllm.entrypoints.openai.chat_completion import protocol

    choice = {"index": 0, "delta": DeltaMessage(**delta), "logprobs": None, "finish_reason": None, **choice}
    choices = [protocol.ChatCompletionResponseStreamChoice(**choice)]
    chunk: BaseModel = protocol.ChatCompletionStreamResponse(choices=choices, **_NO_STREAM, **fields)
    return chunk


@_cached
def _completion_text(finish_reason: str | None, stop_reason: int | str | None, fingerprint: str | None) -> Around:
    """Return what is around the text in an event of a completion, after its head; only the last has reasons."""
    from vllm.entrypoints.openai.completion.protocol import CompletionResponseStreamChoice, CompletionStreamResponse

    fields: dict[str, Any] = dict.fromkeys(("logprobs", "prompt_token_ids", "token_ids"))
    fields |= {"finish_reason": finish_reason, "stop_reason": stop_reason}
    choice = CompletionResponseStreamChoice(index=0, text=_PLACEHOLDER, **fields)
    return _around_text(CompletionStreamResponse(choices=[choice], **_NO_STREAM, **_if_set(fingerprint)))


def _if_set(fingerprint: str | None) -> dict[str, str]:
    return {} if fingerprint is None else {"system_fingerprint": fingerprint}


def _around_text(chunk: BaseModel) -> Around:
    before, _, after = _after_head(chunk).partition(f'"{_PLACEHOLDER}"'.encode())
    return before, after


def _after_head(chunk: BaseModel) -> bytes:
    return _to_event(chunk).partition(b',"choices":')[2]


def _head(common: Mapping[str, object]) -> bytes:
    """Return how all events of a stream begin; `common` has what is the same in all its chunks, in vLLM's order."""
    return sse.PREFIX + _encode_json(common)[:-1] + b',"choices":'


class _PlainWriter:
    """Writes the events of one plain stream, in which the chunks between the first and the last differ in their text.

    With `send`, those may be sent directly, while this waits for an output.
    """

    def __init__(
        self,
        serving: Any,
        request: Any,
        head: bytes,
        around_text: Callable[[str | None, int | str | None, str | None], Around],
        to_usage_event: Callable[[dict[str, Any]], bytes],
        send: SendChunk | None,
        first_event: bytes = b"",
    ) -> None:
        """`head` is how all events begin, `around_text` what else is around their texts; see `_chat_text`."""
        self._serving, self._around_text, self._to_usage_event = serving, around_text, to_usage_event
        self._send, self._first_event, self._stream_head = send, first_event, head
        self._has_usage = request.stream_options is not None and bool(request.stream_options.include_usage)
        before, self._tail = around_text(None, None, None)
        self._head = head + before
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
        fingerprint = None if self._has_usage else self._serving.system_fingerprint
        before, after = self._around_text(last.finish_reason, last.stop_reason, fingerprint)
        return self._stream_head + before + _encode_json(last.text) + after

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
