"""Protocols over chat completions: Anthropic's messages and OpenAI's responses for servers that have neither.

A translator makes the chat completion to ask for, and the response or the events of the protocol out of its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import msgspec

from appliance.core.conversation_items import translate_message_request, translate_response_request
from appliance.core.errors import RequestError
from appliance.core.model import Operation
from appliance.over_chat.chat import Json
from appliance.over_chat.messages import CountTokensTranslator, MessageTranslator
from appliance.over_chat.response_events import ResponseTranslator
from appliance.over_chat.translator import Translator

__all__ = ["TRANSLATED", "Translator", "translate"]

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
