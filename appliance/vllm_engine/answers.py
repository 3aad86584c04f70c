"""
A call through vLLM's serving classes: bytes in, bytes or a stream of bytes out.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from appliance.contract import Call, Operation, Reply
from appliance.errors import CallError, EngineDeadError
from appliance.vllm_engine.request_size import require_fitting
from appliance.vllm_engine.streams import DIED, quicken, raise_deaths

if TYPE_CHECKING:
    from starlette.datastructures import State
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse

Answer = Callable[[Call], Awaitable[Reply]]
"""
Answers the calls for one operation; raises what `Model.answer` does.
"""

# vLLM calls what it could not fit by names of its own, which no client ever sent.
_ITS_NAMES = frozenset({"input_text", "input_tokens"})

_TYPES = frozenset({"bool", "bytes", "float", "int", "str"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """
    One serving method of vLLM: the type of its requests, itself, and how its answers are written.

    `texts` is the field of the request that is at fault when its text is too long; `writes_bytes` is that its streams
    are bytes already, which saves a step for each token.
    """

    request: TypeAdapter[Any]  # Any: vLLM's request types
    serve: Callable[..., Awaitable[Any]]
    dump: Mapping[str, bool] = field(default_factory=dict)
    texts: str | None = None
    writes_bytes: bool = False

    async def __call__(self, call: Call) -> Reply:
        """
        Decode the call, have vLLM answer it, encode the answer.

        Raises:
            CallError: the call is at fault.
            EngineDeadError: the engine core died meanwhile.
        """
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse

        request = decode(self.request, call.body)
        with vendor_faults(self.texts):
            result = await self.serve(request, RawRequest(call.headers))
        if isinstance(result, ErrorResponse):
            raise _refusal(result, self.texts)
        if isinstance(result, AsyncGenerator):
            events = result if self.writes_bytes else _events(result, self.dump)
            return Reply(events, media_type="text/event-stream")
        # The serving classes of pooling models write their answers themselves.
        return Reply(bytes(result.body) if hasattr(result, "body") else result.model_dump_json(**self.dump).encode())


class RawRequest:
    """
    All that vLLM touches of the web framework's request.
    """

    __slots__ = ("headers", "state")

    def __init__(self, headers: Mapping[str, str]) -> None:
        from starlette.datastructures import Headers

        self.headers = Headers(dict(headers))
        self.state = SimpleNamespace()


def generation(state: State) -> Mapping[Operation, Answer]:
    """
    What answers each operation of a generative model, out of what `init_app_state` built.
    """
    from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    quicken(state.openai_serving_chat, state.openai_serving_completion)
    chat = state.openai_serving_chat.create_chat_completion
    completion = state.openai_serving_completion.create_completion
    messages = state.anthropic_serving_messages
    raise_deaths(messages)
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
    """
    What answers for the tokenizer of any model.
    """
    from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeRequest

    tokens = state.serving_tokenization
    return {
        Operation.TOKENIZE: Endpoint(TypeAdapter(TokenizeRequest), tokens.create_tokenize),
        Operation.DETOKENIZE: Endpoint(TypeAdapter(DetokenizeRequest), tokens.create_detokenize),
    }


def decode(request: TypeAdapter[Any], body: bytes) -> Any:  # Any: vLLM's request types
    """
    The body as a request of vLLM's.

    Raises:
        CallError: it is none, or asks for more than the model takes in one; `param` is the field at fault.
    """
    try:
        decoded = request.validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # vLLM's own validators name the field in the exception they raise.
        param = getattr(first.get("ctx", {}).get("error"), "parameter", None)
        place = ".".join(str(part) for part in takewhile(_is_field, first["loc"]))
        raise CallError(f"{place}: {first['msg']}" if place else first["msg"], param=param or place or None) from error
    require_fitting(decoded)
    return decoded


def _is_field(part: int | str) -> bool:
    """
    Whether it leads into the request; pydantic goes on with the type it tried, of those that a field may have.
    """
    return isinstance(part, int) or not (part in _TYPES or "[" in part)


@contextmanager
def vendor_faults(texts: str | None) -> Iterator[None]:
    """
    Translate what vLLM raises; `texts` is the field of the request that holds what may be too long.

    Raises:
        CallError: the call is at fault.
        EngineDeadError: the engine core died meanwhile.
    """
    from vllm.entrypoints.serve import create_error_response
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError

    try:
        yield
    except CallError:
        raise
    except VllmEngineDeadError as error:
        raise EngineDeadError(DIED) from error
    except Exception as error:
        # vLLM's own table of exceptions and statuses; what it does not know is a fault of ours.
        result = create_error_response(error)
        if result.error.code >= 500:
            raise
        if isinstance(error, VLLMValidationError):
            # As text it repeats the names of vLLM's own arguments.
            result.error.message = str(error.args[0])
        raise _refusal(result, texts) from error


def _refusal(response: ErrorResponse, texts: str | None) -> CallError:
    param = texts if texts and response.error.param in _ITS_NAMES else response.error.param
    return CallError(response.error.message, param=param, status=response.error.code)


async def _events(stream: AsyncGenerator[Any], dump: Mapping[str, bool]) -> AsyncGenerator[bytes]:
    """
    vLLM's stream as bytes; closing it aborts the request in the engine.

    Most serving classes write their own server-sent events; the one for responses gives objects.
    """
    from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError

    try:
        async for event in stream:
            if isinstance(event, str):
                yield event.encode()
            else:
                yield f"event: {event.type}\ndata: {event.model_dump_json(**dump)}\n\n".encode()
    except VllmEngineDeadError as error:
        raise EngineDeadError(DIED) from error
    finally:
        await stream.aclose()
