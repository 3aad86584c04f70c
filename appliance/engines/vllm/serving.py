"""A call through vLLM's serving classes: bytes in, bytes or a stream of bytes out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from appliance.core import sse
from appliance.core.concurrency import off_loop
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.engines.vllm.error_messages import with_field
from appliance.engines.vllm.errors import refusal, vendor_faults
from appliance.engines.vllm.request_decoder import decode
from appliance.engines.vllm.sse import patch_stream_writers, raise_from_messages, raise_from_responses

if TYPE_CHECKING:
    from starlette.datastructures import State

Answer = Callable[[ModelRequest], Awaitable[ModelResponse]]
"""
Answers the calls for one operation; raises what `Model.handle` does.
"""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One serving method of vLLM: the type of its requests, itself, and how its answers are written.

    `texts` is the field of the request that is at fault when its text is too long; `writes_bytes` is that its streams
    are bytes already, which saves a step for each token.
    """

    request: TypeAdapter[Any]  # Any: vLLM's request types
    serve: Callable[..., Awaitable[Any]]
    dump: Mapping[str, bool] = field(default_factory=dict)
    texts: str | None = None
    writes_bytes: bool = False

    async def __call__(self, call: ModelRequest) -> ModelResponse:
        """Decode the call, have vLLM answer it, encode the answer.

        Raises:
            CallError: the call is at fault.
            EngineDeadError: the engine core died meanwhile.
        """
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse

        request = await off_loop(len(call.body), decode, self.request, call.body)
        with vendor_faults(self.texts, request):
            result = await self.serve(request, RawRequest(call.headers))
        if isinstance(result, ErrorResponse):
            raise with_field(refusal(result, self.texts), request)
        if isinstance(result, AsyncGenerator):
            events = result if self.writes_bytes else _events(result, self.dump, request)
            return ModelResponse(events, media_type=sse.MEDIA_TYPE)
        # The serving classes of pooling models write their answers themselves.
        return ModelResponse(
            bytes(result.body) if hasattr(result, "body") else result.model_dump_json(**self.dump).encode()
        )


class RawRequest:
    """All that vLLM touches of the web framework's request."""

    __slots__ = ("headers", "state")

    def __init__(self, headers: Mapping[str, str]) -> None:
        from starlette.datastructures import Headers

        self.headers = Headers(dict(headers))
        self.state = SimpleNamespace()


def generation(state: State) -> Mapping[Operation, Answer]:
    """What answers each operation of a generative model, out of what `init_app_state` built."""
    from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    patch_stream_writers(state.openai_serving_chat, state.openai_serving_completion)
    chat = state.openai_serving_chat.create_chat_completion
    completion = state.openai_serving_completion.create_completion
    messages = state.anthropic_serving_messages
    raise_from_messages(messages)
    raise_from_responses(state.openai_serving_responses)
    rows: list[tuple[Operation, Any, Callable[..., Awaitable[Any]], Mapping[str, bool]]] = [
        (Operation.CHAT_COMPLETION, ChatCompletionRequest, chat, {}),
        (Operation.COMPLETION, CompletionRequest, completion, {}),
        (Operation.RESPONSE, ResponsesRequest, state.openai_serving_responses.create_responses, {"by_alias": True}),
        (Operation.MESSAGE, AnthropicMessagesRequest, messages.create_messages, {"exclude_none": True}),
        (Operation.COUNT_TOKENS, AnthropicCountTokensRequest, messages.count_tokens, {"exclude_none": True}),
    ]
    quick = {Operation.CHAT_COMPLETION, Operation.COMPLETION}
    own = {
        operation: Endpoint(TypeAdapter(type_), serve, dump, writes_bytes=operation in quick)
        for operation, type_, serve, dump in rows
    }
    return own | tokenization(state)


def tokenization(state: State) -> dict[Operation, Answer]:
    """What answers for the tokenizer of any model."""
    from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeRequest

    tokens = state.serving_tokenization
    return {
        Operation.TOKENIZE: Endpoint(TypeAdapter(TokenizeRequest), tokens.create_tokenize),
        Operation.DETOKENIZE: Endpoint(TypeAdapter(DetokenizeRequest), tokens.create_detokenize),
    }


async def _events(stream: AsyncGenerator[Any], dump: Mapping[str, bool], request: object) -> AsyncGenerator[bytes]:
    """vLLM's stream as bytes; closing it aborts the request in the engine.

    Most serving classes write their own server-sent events; the one for responses gives objects.
    """
    async with aclosing(stream):
        with vendor_faults(request=request):
            async for event in stream:
                if isinstance(event, str):
                    yield event.encode()
                else:
                    yield sse.event(event.model_dump_json(**dump).encode(), event.type)
