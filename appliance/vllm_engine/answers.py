"""
A call through vLLM's serving classes: bytes in, bytes or a stream of bytes out.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from appliance.contract import Call, Operation, Reply
from appliance.errors import CallError, EngineDeadError

if TYPE_CHECKING:
    from starlette.datastructures import State


@dataclass(frozen=True, slots=True)
class Endpoint:
    """
    One serving method of vLLM: the type of its requests, itself, and how its answers are written.
    """

    request: TypeAdapter[Any]  # Any: vLLM's request types
    serve: Callable[..., Awaitable[Any]]
    dump: Mapping[str, bool]


class RawRequest:
    """
    All that vLLM touches of the web framework's request.
    """

    __slots__ = ("headers", "state")

    def __init__(self, headers: Mapping[str, str]) -> None:
        from starlette.datastructures import Headers

        self.headers = Headers(dict(headers))
        self.state = SimpleNamespace()


def endpoints(state: State) -> Mapping[Operation, Endpoint]:
    """
    The serving method for each operation of a generative model, out of what `init_app_state` built.
    """
    from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeRequest

    chat = state.openai_serving_chat.create_chat_completion
    completion = state.openai_serving_completion.create_completion
    messages, tokens = state.anthropic_serving_messages, state.serving_tokenization
    rows: list[tuple[Operation, Any, Callable[..., Awaitable[Any]], Mapping[str, bool]]] = [
        (Operation.CHAT_COMPLETION, ChatCompletionRequest, chat, {}),
        (Operation.COMPLETION, CompletionRequest, completion, {}),
        (Operation.RESPONSE, ResponsesRequest, state.openai_serving_responses.create_responses, {"by_alias": True}),
        (Operation.MESSAGE, AnthropicMessagesRequest, messages.create_messages, {"exclude_none": True}),
        (Operation.COUNT_TOKENS, AnthropicCountTokensRequest, messages.count_tokens, {"exclude_none": True}),
        (Operation.TOKENIZE, TokenizeRequest, tokens.create_tokenize, {}),
        (Operation.DETOKENIZE, DetokenizeRequest, tokens.create_detokenize, {}),
    ]
    return {operation: Endpoint(TypeAdapter(type_), serve, dump) for operation, type_, serve, dump in rows}


async def answer(endpoint: Endpoint, call: Call) -> Reply:
    """
    Decode the call, have vLLM answer it, encode the answer.

    Raises:
        CallError: the call is at fault.
        EngineDeadError: the engine core died meanwhile.
    """
    from vllm.entrypoints.serve import create_error_response
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse
    from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError

    request = _decode(endpoint, call.body)
    try:
        result = await endpoint.serve(request, RawRequest(call.headers))
    except VllmEngineDeadError as error:
        raise EngineDeadError("the engine died while it answered; try again in a moment") from error
    except Exception as error:
        # vLLM's own table of exceptions and statuses; what it does not know is a fault of ours.
        result = create_error_response(error)
        if result.error.code >= 500:
            raise
    if isinstance(result, ErrorResponse):
        raise CallError(result.error.message, param=result.error.param, status=result.error.code)
    if isinstance(result, AsyncGenerator):
        return Reply(_events(result, endpoint.dump), media_type="text/event-stream")
    return Reply(result.model_dump_json(**endpoint.dump).encode())


def _decode(endpoint: Endpoint, body: bytes) -> Any:  # Any: vLLM's request types
    try:
        return endpoint.request.validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # vLLM's own validators name the field in the exception they raise.
        param = getattr(first.get("ctx", {}).get("error"), "parameter", None)
        place = ".".join(str(part) for part in first["loc"])
        raise CallError(f"{place}: {first['msg']}" if place else first["msg"], param=param or place or None) from error


async def _events(stream: AsyncGenerator[Any], dump: Mapping[str, bool]) -> AsyncGenerator[bytes]:
    """
    vLLM's stream as bytes; closing it aborts the request in the engine.

    Most serving classes write their own server-sent events, the one for responses gives objects.
    """
    try:
        async for event in stream:
            if isinstance(event, str):
                yield event.encode()
            else:
                yield f"event: {event.type}\ndata: {event.model_dump_json(**dump)}\n\n".encode()
    finally:
        await stream.aclose()
