"""Operations of vLLM's serving classes: a request's bytes in, a body or a stream of bytes out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from appliance.core import sse
from appliance.core.conversation_items import translate_message_request, translate_response_request
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.engines.pooling_protocol import Handler
from appliance.engines.vllm import patches
from appliance.engines.vllm.direct_stream import use_sender
from appliance.engines.vllm.errors import from_error_response, translate_errors
from appliance.engines.vllm.request_decoder import Change, decode_request

if TYPE_CHECKING:
    from starlette.datastructures import State

# The names of the longest response in each protocol.
_MAX_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One serving method of vLLM."""

    request_type: TypeAdapter[Any]  # Any: vLLM's request types
    serve: Callable[..., Awaitable[Any]]
    dump_options: Mapping[str, bool] = field(default_factory=dict)
    """Options of pydantic for the response."""
    streams_bytes: bool = False
    """Whether its streams are bytes already, which saves a generator for each token."""
    change: Change | None = None
    max_tokens: int | None = None
    """The most tokens of a response that vLLM takes, to which larger numbers are lowered; None lowers none. vLLM itself
    lowers them further to what the prompt leaves.
    """

    async def __call__(self, request: ModelRequest) -> ModelResponse:
        from starlette.datastructures import Headers
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse

        decoded = await decode_request(self.request_type, request, self.change)
        patches.client_model.set(request.model or decoded.model)
        if self.max_tokens is not None:
            _lower_max_tokens(decoded, self.max_tokens)
        with translate_errors(decoded, request.body):
            # All that vLLM reads and writes of Starlette's request.
            raw = SimpleNamespace(headers=Headers(dict(request.headers)), state=SimpleNamespace())
            # The others' streams are made of a chat's.
            with use_sender(request.send if self.streams_bytes else None):
                result = await self.serve(decoded, raw)
            if isinstance(result, ErrorResponse):
                raise from_error_response(result)
        if isinstance(result, AsyncGenerator):
            events = result if self.streams_bytes else self._encode(result, decoded)
            return ModelResponse(events, media_type=sse.MEDIA_TYPE)
        # The serving classes of pooling models return a response of Starlette.
        has_body = hasattr(result, "body")
        return ModelResponse(bytes(result.body) if has_body else result.model_dump_json(**self.dump_options).encode())

    async def _encode(self, stream: AsyncGenerator[Any], request: object) -> AsyncGenerator[bytes]:
        """Yield vLLM's stream as bytes; closing this aborts the request in the engine."""
        async with aclosing(stream):
            with translate_errors(request):
                async for event in stream:
                    # Only the Responses API yields objects, the other classes yield text.
                    if isinstance(event, str):
                        yield event.encode()
                    else:
                        event.type = _event_type(event)
                        yield sse.event(event.model_dump_json(**self.dump_options).encode(), event.type)


def _event_type(event: Any) -> str:  # Any: vLLM's events of responses
    """Return the type of an event; vLLM ends all streams as completed, also one that reached `max_output_tokens`.

    Source: https://platform.openai.com/docs/api-reference/responses-streaming/response/incomplete
    """
    is_incomplete = event.type == "response.completed" and event.response.status == "incomplete"
    return "response.incomplete" if is_incomplete else str(event.type)


def _lower_max_tokens(request: Any, limit: int) -> None:  # Any: vLLM's request types
    for name in _MAX_TOKENS:
        if (getattr(request, name, None) or 0) > limit:
            setattr(request, name, limit)


def generation_handlers(state: State, max_tokens: int | None = None) -> Mapping[Operation, Handler]:
    """Return the handlers of a model that generates text, from what `init_app_state` built.

    `max_tokens` is that of `Endpoint`.
    """
    from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    chat, completion = state.openai_serving_chat, state.openai_serving_completion
    messages, responses = state.anthropic_serving_messages, state.openai_serving_responses
    patches.write_plain_streams(chat, completion)
    patches.raise_message_errors(messages)
    patches.raise_response_errors(responses)
    patches.hold_forced_calls_to_their_schema()
    chat_type, completion_type = TypeAdapter(ChatCompletionRequest), TypeAdapter(CompletionRequest)
    messages_type, count_type = TypeAdapter(AnthropicMessagesRequest), TypeAdapter(AnthropicCountTokensRequest)
    response_type, no_nulls = TypeAdapter(ResponsesRequest), {"exclude_none": True}
    reasoning = state.vllm_config.reasoning_config
    to_blocks = partial(translate_message_request, has_thinking_budget=bool(reasoning and reasoning.enabled))
    endpoints = {
        Operation.CHAT_COMPLETION: Endpoint(chat_type, chat.create_chat_completion, streams_bytes=True),
        Operation.COMPLETION: Endpoint(completion_type, completion.create_completion, streams_bytes=True),
        Operation.RESPONSE: Endpoint(
            response_type, responses.create_responses, {"by_alias": True}, change=translate_response_request
        ),
        Operation.MESSAGE: Endpoint(messages_type, messages.create_messages, no_nulls, change=to_blocks),
        Operation.COUNT_TOKENS: Endpoint(count_type, messages.count_tokens, no_nulls, change=to_blocks),
    }
    return {
        **tokenization_handlers(state),
        **{operation: replace(each, max_tokens=max_tokens) for operation, each in endpoints.items()},
    }


def tokenization_handlers(state: State) -> dict[Operation, Handler]:
    """Return the handlers of any model's tokenizer."""
    from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeRequest

    serving = state.serving_tokenization
    return {
        Operation.TOKENIZE: Endpoint(TypeAdapter(TokenizeRequest), serving.create_tokenize),
        Operation.DETOKENIZE: Endpoint(TypeAdapter(DetokenizeRequest), serving.create_detokenize),
        Operation.TOKENIZER_INFO: partial(_tokenizer_info, serving),
    }


async def _tokenizer_info(serving: Any, _request: ModelRequest) -> ModelResponse:  # Any: a serving class of vLLM
    """Return the settings of the tokenizer, without the paths of its files, of which vLLM omits some."""
    with translate_errors():
        info = await serving.get_tokenizer_info()
    directory, settings = serving.model_config.tokenizer, info.model_extra.items()
    paths = {name for name, value in settings if isinstance(value, str) and value.startswith(directory)}
    return ModelResponse(info.model_dump_json(exclude=paths).encode())
