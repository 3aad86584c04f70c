"""
Plain chat and completion streams, in vLLM's words at less than its work.

vLLM's serving classes build, check and write two or three objects for each token. In a plain stream all but the text
is the same in each of them, so we have vLLM write one, and put the others' texts in its place. Whatever else a client
may ask for (tools, reasoning, log probabilities, several answers, echo, token ids, running usage) stays with vLLM's
own writers.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from appliance.errors import EngineDeadError
from appliance.vllm_engine.streams.chat import ChatWriter
from appliance.vllm_engine.streams.completion import CompletionWriter
from appliance.vllm_engine.streams.writer import Written

if TYPE_CHECKING:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.outputs import RequestOutput


DIED = "the engine died while it answered"
"""
What is said of a request that the engine's death ended.
"""


def quicken(chat: Any, completion: Any) -> None:  # Any: vLLM's serving classes
    """
    Have these two of vLLM's write plain streams as this room does, and all others as before; all of them as bytes.

    Any of them raises EngineDeadError when the engine core dies meanwhile.
    """
    chat.chat_completion_stream_generator = _chats(chat, chat.chat_completion_stream_generator)
    completion.completion_stream_generator = _completions(completion, completion.completion_stream_generator)
    for serving in (chat, completion):
        raise_deaths(serving)


def raise_deaths(serving: Any) -> None:  # Any: one of vLLM's serving classes
    """
    Have vLLM's word for what ends a stream but for the engine's death: it sends the client to a stack trace.
    """
    from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError

    own = serving.create_streaming_error_response

    def word(error: str | Exception, *others: Any, **more: Any) -> str:
        if isinstance(error, VllmEngineDeadError):
            raise EngineDeadError(DIED) from error
        said: str = own(error, *others, **more)
        return said

    serving.create_streaming_error_response = word


def _chats(serving: Any, own: Callable[..., AsyncGenerator[str]]) -> Callable[..., Written]:
    def write(
        request: ChatCompletionRequest,
        results: AsyncGenerator[RequestOutput],
        request_id: str,
        model: str,
        *others: Any,
        **more: Any,
    ) -> Written:
        if serving.parser_cls is None and is_plain(serving, request) and not request.return_prompt_text:
            return ChatWriter(serving, request, request_id, int(time.time()), model).write(results)
        return _encoded(own(request, results, request_id, model, *others, **more))

    return write


def _completions(serving: Any, own: Callable[..., AsyncGenerator[str]]) -> Callable[..., Written]:
    def write(
        request: CompletionRequest,
        inputs: Any,
        results: AsyncGenerator[tuple[int, RequestOutput]],
        request_id: str,
        created: int,
        model: str,
        num_prompts: int,
        *others: Any,
        **more: Any,
    ) -> Written:
        if num_prompts == 1 and is_plain(serving, request):
            return CompletionWriter(serving, request, request_id, created, model).write(_of_one_prompt(results))
        return _encoded(own(request, inputs, results, request_id, created, model, num_prompts, *others, **more))

    return write


def is_plain(serving: Any, request: Any) -> bool:  # Any: vLLM's serving classes and requests
    """
    Whether all chunks between the first and the last differ in their text alone.
    """
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


async def _encoded(events: AsyncGenerator[str]) -> Written:
    async with aclosing(events):
        async for event in events:
            yield event.encode()


async def _of_one_prompt(results: AsyncGenerator[tuple[int, RequestOutput]]) -> AsyncGenerator[RequestOutput]:
    async with aclosing(results):
        async for _, result in results:
            yield result
