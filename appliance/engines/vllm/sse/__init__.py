"""Plain chat and completion streams, in vLLM's words at less than its work.

vLLM's serving classes build, check and write two or three objects for each token. In a plain stream all but the text
is the same in each of them, so we have vLLM write one, and put the others' texts in its place. Whatever else a client
may ask for (tools, reasoning, log probabilities, several answers, echo, token ids, running usage) stays with vLLM's
own writers.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from appliance.engines.vllm.errors import vendor_faults
from appliance.engines.vllm.sse.chat import ChatWriter
from appliance.engines.vllm.sse.completion import CompletionWriter
from appliance.engines.vllm.sse.writer import Written

if TYPE_CHECKING:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.outputs import RequestOutput


def patch_stream_writers(chat: Any, completion: Any) -> None:  # Any: vLLM's serving classes
    """Have these two of vLLM's write plain streams as this room does, and all others as before; all of them as bytes.

    Any of them raises what goes wrong, as `vendor_faults` does.
    """
    chat.chat_completion_stream_generator = _chats(chat, chat.chat_completion_stream_generator)
    completion.completion_stream_generator = _completions(completion, completion.completion_stream_generator)
    for serving in (chat, completion):
        _raise_faults(serving)


def raise_from_messages(messages: Any) -> None:  # Any: vLLM's serving class
    """Have Anthropic's streams raise what goes wrong; vLLM would make an event of it, without its status."""
    write, convert = messages.chat_completion_stream_generator, messages.message_stream_converter

    def started(request: Any, results: AsyncGenerator[Any], *others: Any, **more: Any) -> AsyncGenerator[str]:
        return _once_started(results, lambda rest: write(request, rest, *others, **more))

    async def converted(chats: AsyncGenerator[str]) -> AsyncGenerator[str]:
        faults: list[Exception] = []
        async with aclosing(convert(_watched(chats, faults))) as events:
            async for event in events:
                if faults:
                    raise faults[0]
                yield event

    messages.chat_completion_stream_generator, messages.message_stream_converter = started, converted
    _raise_faults(messages)


def raise_from_responses(responses: Any) -> None:  # Any: vLLM's serving class
    """Have streams of responses raise what goes wrong, and begin no sooner than the engine."""
    write = responses.responses_stream_generator

    def started(
        request: Any, params: Any, results: AsyncGenerator[Any], *others: Any, **more: Any
    ) -> AsyncGenerator[Any]:
        return _once_started(results, lambda rest: write(request, params, rest, *others, **more))

    responses.responses_stream_generator = started
    _raise_faults(responses)


def _raise_faults(serving: Any) -> None:  # Any: one of vLLM's serving classes
    """Have vLLM raise what ends a stream, where it would write an event of its own shape and go on to a good end."""

    def reraise(error: str | Exception, *_others: Any, **_more: Any) -> str:
        raise error if isinstance(error, Exception) else RuntimeError(error)

    serving.create_streaming_error_response = reraise
    serving._convert_generation_error_to_streaming_response = reraise


async def _once_started(
    results: AsyncGenerator[Any], write: Callable[[AsyncGenerator[Any]], AsyncGenerator[Any]]
) -> AsyncGenerator[Any]:
    """What `write` makes of the results, once the engine has given the first.

    vLLM begins streams before the engine has looked at the request, and an error would come too late for a status.
    """
    async with aclosing(results):
        first = [result async for result in _first(results)]
        async with aclosing(write(_all(first, results))) as events:
            async for event in events:
                yield event


async def _first(results: AsyncGenerator[Any]) -> AsyncGenerator[Any]:
    with suppress(StopAsyncIteration):
        yield await anext(results)


async def _all(first: Sequence[Any], rest: AsyncGenerator[Any]) -> AsyncGenerator[Any]:
    for result in first:
        yield result
    async for result in rest:
        yield result


async def _watched(chats: AsyncGenerator[str], faults: list[Exception]) -> AsyncGenerator[str]:
    async with aclosing(chats):
        try:
            async for event in chats:
                yield event
        except Exception as error:
            faults.append(error)
            raise


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
        return _encoded(results, lambda rest: own(request, rest, request_id, model, *others, **more))

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
        return _encoded(
            results, lambda rest: own(request, inputs, rest, request_id, created, model, num_prompts, *others, **more)
        )

    return write


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


async def _encoded(
    results: AsyncGenerator[Any], write: Callable[[AsyncGenerator[Any]], AsyncGenerator[str]]
) -> Written:
    with vendor_faults():
        async with aclosing(_once_started(results, write)) as events:
            async for event in events:
                yield event.encode()


async def _of_one_prompt(results: AsyncGenerator[tuple[int, RequestOutput]]) -> AsyncGenerator[RequestOutput]:
    async with aclosing(results):
        async for _, result in results:
            yield result
