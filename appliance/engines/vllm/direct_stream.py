"""Plain streams whose tokens are sent at the end of each step of the engine, without a task and objects for each token.

The first and the last output of a stream take the usual way: vLLM's output processor makes an object, the request's
task wakes up, and the bytes pass every generator up to the server. The outputs in between have a token and nothing
else, so all that is left of this way is to decode the token, to count it, and to send its event. That is done here for
all streams of a step together, while the tasks of their requests go on waiting for an output.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import msgspec

from appliance.core.request_context import RequestContext, current_context

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import OutputProcessorOutput, RequestState
    from vllm.v1.metrics.stats import IterationStats

    from appliance.core.model import SendChunk

# With more streams, the tokens that a stream has got while we lagged behind the engine share an event.
_MAX_STREAMS_WITHOUT_MERGING = 256

# While further steps are waiting, their tokens are collected, so that fewer chunks are sent; for this long at most.
_MAX_DELAY_SECONDS = 0.1

# It has no state.
_encode_json = msgspec.json.Encoder().encode

_sender: ContextVar[SendChunk | None] = ContextVar("sender", default=None)


@contextmanager
def use_sender(send: SendChunk | None) -> Iterator[None]:
    """Let the stream that is created in the block send its chunks with `send`; None if it may not."""
    token = _sender.set(send)
    try:
        yield
    finally:
        _sender.reset(token)


def current_sender() -> SendChunk | None:
    """Return what sends the chunks of the stream that is being created; None if it has to yield them."""
    return _sender.get()


class DirectStream:
    """The tokens of a plain stream between its first and its last, in events of `head`, a JSON text and `tail`.

    It sends only while the request's task waits for an output: then the client has been sent all that was yielded.
    """

    __slots__ = ("_context", "_head", "_ready", "_send", "_sending", "_state", "_tail", "_texts", "collector", "tokens")

    def __init__(self, state: RequestState, head: bytes, tail: bytes, send: SendChunk) -> None:
        self._state, self._head, self._tail, self._send = state, head, tail, send
        self._context: RequestContext | None = current_context()
        self._texts: list[str] = []
        self._sending: asyncio.Future[None] | None = None
        self.collector = state.queue
        self._ready = state.queue.ready
        self.tokens = 0
        """Tokens that took this way."""
        self.collector.direct = self

    @classmethod
    def attach(cls, llm: AsyncLLM, request_id: str, head: bytes, tail: bytes, send: SendChunk) -> DirectStream | None:
        """Return the stream of a request that has its first token; None if vLLM has to look at each of its texts."""
        processor = llm.output_processor
        # A request that has ended has none, one with several choices has more.
        ids = processor.external_req_ids.get(request_id, ())
        state = processor.request_states.get(ids[0]) if len(ids) == 1 else None
        if state is None or state.stream_interval > 1 or state.is_prefilling:
            return None
        # Without a detokenizer there are no texts; stop strings are searched in all of them.
        if getattr(state.detokenizer, "stop", True):
            return None
        return cls(state, head, tail, send)

    def decode(self, token_ids: Sequence[int]) -> bool:
        """Decode and count tokens, as vLLM's detokenizer does; True if there was nothing to send before."""
        detokenizer, was_empty, text = self._state.detokenizer, not self._texts, ""
        for token_id in token_ids:
            detokenizer.token_ids.append(token_id)
            text += detokenizer.decode_next(token_id)
        self._texts.append(text)
        self.tokens += len(token_ids)
        return was_empty

    def flush(self, *, merge: bool) -> None:
        """Send what there is if the client takes it now; if not, it is sent later, or with the last output."""
        if not self._texts or self._sending is not None or not self._ready.has_waiter:
            return
        try:
            self._sending = self._send(self.take_events(merge=merge))
        except Exception as error:
            # It is the request's, and must not end the task that serves all of them.
            self.collector.put(error)
        if self._sending is not None:
            self._sending.add_done_callback(self._sent)

    def take_events(self, *, merge: bool = False) -> bytes:
        """Return the events that are not sent yet, one for each step or merged; empty if there are none."""
        texts, self._texts = self._texts, []
        if len(texts) == 1:
            return self._head + _encode_json(texts[0]) + self._tail
        if merge and texts:
            return self._head + _encode_json("".join(texts)) + self._tail
        return b"".join([self._head + _encode_json(text) + self._tail for text in texts])

    def close(self) -> None:
        """Send nothing any more; the tokens are counted for the request."""
        self.collector.direct = None
        self._texts = []
        if self._context is not None:
            self._context.output_tokens = (self._context.output_tokens or 0) + self.tokens

    def _sent(self, _: asyncio.Future[None]) -> None:
        self._sending = None
        # The client is slow, so it gets larger pieces.
        self.flush(merge=True)


def _has_version(state: RequestState, weight_version: str) -> bool:
    """Whether the tokens before had the same version of the weights; vLLM notes where it changes."""
    starts = state.weight_version_starts
    return bool(starts) and starts[-1][0] == weight_version


class StepProcessor:
    """Processes the outputs of a step: those of direct streams here, all others with vLLM's output processor."""

    def __init__(self, llm: AsyncLLM) -> None:
        from vllm.v1.engine import EngineCoreOutput
        from vllm.v1.engine.output_processor import OutputProcessorOutput

        processor = llm.output_processor
        self._process, self._states = processor.process_outputs, processor.request_states
        self._steps: asyncio.Queue[Any] = llm.engine_core.outputs_queue  # Any: vLLM's outputs of one step
        self._output_type = EngineCoreOutput
        self._nothing = OutputProcessorOutput(request_outputs=[], reqs_to_abort=[])
        self._unsent: list[DirectStream] = []
        self._unsent_since = 0.0

    def process_outputs(
        self,
        outputs: Sequence[EngineCoreOutput],
        timestamp: float | None = None,
        statistics: IterationStats | None = None,
        weight_version: str | None = None,
    ) -> OutputProcessorOutput:
        """Do what vLLM's method of this name does; its name is part of what vLLM calls."""
        others = self._decode(outputs, timestamp, statistics, weight_version)
        result = self._nothing
        if others:
            # First and last outputs wake up the tasks of their requests before other tokens are sent.
            result = self._process(others, timestamp, statistics, weight_version=weight_version)
        if self._unsent:
            self._flush()
        return result

    def _decode(
        self,
        outputs: Sequence[EngineCoreOutput],
        timestamp: float | None,
        statistics: IterationStats | None,
        weight_version: str | None,
    ) -> list[EngineCoreOutput]:
        """Decode the tokens of direct streams; return the outputs that are more than tokens of those."""
        states, output_type, others, tokens = self._states, self._output_type, [], 0
        for output in outputs:
            request_id, token_ids = output.request_id, output.new_token_ids
            state = states.get(request_id)
            stream = None if state is None else state.queue.direct
            if (
                stream is None
                or not token_ids
                # An earlier output has not been read yet.
                or stream.collector.output is not None
                or output != output_type(request_id, token_ids)
                or (weight_version is not None and not _has_version(state, weight_version))
            ):
                others.append(output)
                continue
            if stream.decode(token_ids):
                self._unsent.append(stream)
            if statistics is not None:
                # As `IterationStats.update_from_output` counts an output without events.
                tokens += len(token_ids)
                stats = state.stats
                stats.num_generation_tokens += len(token_ids)
                statistics.inter_token_latencies_iter.append(timestamp - stats.last_token_ts)
                stats.last_token_ts = timestamp
        if statistics is not None:
            statistics.num_generation_tokens += tokens
        return others

    def _flush(self) -> None:
        """Send all that there is, unless a later step brings more right now."""
        now = time.monotonic()
        if not self._unsent_since:
            self._unsent_since = now
        if not self._steps.empty() and now - self._unsent_since < _MAX_DELAY_SECONDS:
            return
        streams, self._unsent, self._unsent_since = self._unsent, [], 0.0
        merge = len(self._states) > _MAX_STREAMS_WITHOUT_MERGING
        for stream in streams:
            stream.flush(merge=merge)
