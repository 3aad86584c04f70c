"""Protocols over chat completions: Anthropic's messages and OpenAI's responses for servers that have neither.

A translator makes the chat completion to ask for, and the response or the events of the protocol out of its answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import aclosing
from dataclasses import replace

import msgspec

from appliance.core import sse
from appliance.core.concurrency import off_loop
from appliance.core.conversation_items import translate_message_request, translate_response_request
from appliance.core.errors import RequestError
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.over_chat.chat import Json
from appliance.over_chat.messages import CountTokensTranslator, MessageTranslator
from appliance.over_chat.response_events import ResponseTranslator
from appliance.over_chat.translator import Translator

__all__ = ["TRANSLATED", "Translator", "respond_over_chat", "translate"]

_MAX_EVENT_BYTES = 128 * 1024 * 1024

_TRANSLATORS: Mapping[Operation, Callable[[Json, str, Collection[str]], Translator]] = {
    Operation.MESSAGE: MessageTranslator,
    Operation.COUNT_TOKENS: CountTokensTranslator,
    Operation.RESPONSE: ResponseTranslator,
}

# Histories of agents have items that no model reads, whatever computes it.
_CHANGES: Mapping[Operation, Callable[[Json], None]] = {
    Operation.MESSAGE: translate_message_request,
    Operation.COUNT_TOKENS: translate_message_request,
    Operation.RESPONSE: translate_response_request,
}

TRANSLATED: Mapping[str, frozenset[Operation]] = {
    "messages": frozenset({Operation.MESSAGE, Operation.COUNT_TOKENS}),
    "responses": frozenset({Operation.RESPONSE}),
}
"""The operations of each protocol, by its name in the config."""


def translate(operation: Operation, body: bytes, model: str, unsupported: Collection[str] = ()) -> Translator:
    """Return the translator of a request; `model` and `unsupported` are described there.

    Raises:
        RequestError: it is wrong, or has no counterpart in chat completions.
    """
    try:
        document: Json = msgspec.json.decode(body, type=dict)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The body is not a request: {error}", code="invalid_json") from error
    _CHANGES[operation](document)
    return _TRANSLATORS[operation](document, model, unsupported)


async def respond_over_chat(
    request: ModelRequest, name: str, complete: Callable[[ModelRequest], Awaitable[ModelResponse]]
) -> ModelResponse:
    """Return the response to a request for one of the operations, out of a chat completion of the model `name`.

    Raises:
        RequestError: see `translate`; or `complete` raised it, then with the names of the client's fields.
    """
    model = request.model or name
    translator = await off_loop(len(request.body), translate, request.operation, request.body, model)
    body = msgspec.json.encode({"model": model, **translator.request})
    chat = replace(request, operation=Operation.CHAT_COMPLETION, body=body, path="", send=None)
    try:
        response = await complete(replace(chat, is_streamed=translator.is_streamed))
    except RequestError as error:
        translator.rename(error)
        raise
    if isinstance(response.body, bytes):
        is_error = response.status >= 300
        whole = translator.error(response.status, response.body) if is_error else translator.response(response.body)
        return replace(response, body=whole)
    return replace(response, body=_events(response.body, translator))


async def _events(stream: AsyncGenerator[bytes], translator: Translator) -> AsyncGenerator[bytes]:
    async with aclosing(sse.read_json(stream, has_events=True, max_bytes=_MAX_EVENT_BYTES)) as chunks:
        async for chunk in chunks:
            if events := translator.feed(chunk):
                yield events
    yield translator.finish()
