"""The translation of one request of another protocol to a chat completion, and of the response back."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import msgspec

from appliance.core import sse
from appliance.core.errors import CONTEXT_LENGTH_EXCEEDED, GatewayError, RequestError
from appliance.core.server_errors import ServerError
from appliance.over_chat.chat import Chat, Ending, Json, Part, Usage

# Fields of a chat completion whose names are no words, with the paths below them: items have other places there.
_CHAT_FIELD = re.compile(
    r"\b(messages\[\d+\]|max_completion_tokens|max_tokens|reasoning_effort|response_format)(?:\.\w+|\[\d+\])*"
)

_TRUNCATED = "The upstream's stream ended in the middle of the response."


class Translator(ABC):
    """One request and its response, which comes whole or in chunks.

    `model` is the client's name of the model. `unsupported` are fields that the server does not take: without
    `max_tokens` the limit is sent as `max_completion_tokens`, without `stream_options` no usage is asked for.

    Raises:
        RequestError: the request is wrong, or has no counterpart in chat completions.
    """

    is_streamed: bool = False

    field_names: ClassVar[Mapping[str, str]] = {}
    """The protocol's names of fields of a chat completion."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.request: Json = {}
        """The chat completion to ask for, without the name of the model."""
        self._ending = Ending()
        self._usage = Usage()
        self._has_calls = False

    def response(self, body: bytes | Json) -> bytes:
        """Return the response of the protocol for a whole chat completion."""
        chat = Chat.of(body)
        if chat.choice is None:
            raise GatewayError("The upstream's response is not a chat completion: it has no choices.")
        self._note(chat)
        return msgspec.json.encode(self._whole(list(chat.parts())))

    @abstractmethod
    def _whole(self, parts: list[Part]) -> Json:
        """Return the response for the parts of a turn."""

    def feed(self, body: bytes | Json) -> bytes:
        """Return the events of the protocol for a chunk, or for a whole completion of a server that never streams."""
        raise NotImplementedError

    def finish(self) -> bytes:
        """Return the last events."""
        raise NotImplementedError

    def error(self, status: int, body: bytes) -> bytes:
        """Return the body of a server's error in the form of the protocol."""
        error = ServerError.of(body)
        fields: Json = {
            "message": self._renamed(error.message or f"The upstream answered with the status {status}."),
            "type": error.type or ("server_error" if status >= 500 else "invalid_request_error"),
            "param": self._field(error.param) if isinstance(error.param, str) else error.param,
            "code": CONTEXT_LENGTH_EXCEEDED if error.is_context_length else error.code,
        }
        return msgspec.json.encode(self._error(status, fields))

    def rename(self, error: RequestError) -> None:
        """Change an error about the chat completion so that it names the fields that the client sent."""
        error.args = (self._renamed(str(error)),)
        error.param = error.param and self._field(error.param)

    def _renamed(self, message: str) -> str:
        return _CHAT_FIELD.sub(lambda found: self._field(found[0]), message)

    def _field(self, path: str) -> str:
        name = re.split(r"[.\[]", path, maxsplit=1)[0]
        # Below other fields, such as tools, the places are the same.
        return self.field_names.get(name, name if name == "messages" else path)

    def _error(self, status: int, error: Json) -> Json:  # noqa: ARG002 - other protocols need it
        """Return an error with OpenAI's fields in the form of the protocol."""
        return {"error": error}

    def _note(self, chat: Chat) -> None:
        self._usage = chat.usage or self._usage
        self._ending = Ending.of(chat) or self._ending


class StreamTranslator(Translator):
    """A translator for a protocol that streams the parts of a turn one after the other."""

    is_event_named: ClassVar[bool] = True

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self._part: Part | None = None
        self._part_texts: list[str] = []
        self._has_begun = False
        self._closed: set[int] = set()

    def feed(self, body: bytes | Json) -> bytes:
        chat = Chat.of(body)
        self._note(chat)
        return b"".join(map(_event, self._events(chat)))

    def finish(self) -> bytes:
        if not self._ending.reason:
            raise GatewayError(_TRUNCATED)
        return b"".join(map(_event, (*self._close_part(), *self._end())))

    def _events(self, chat: Chat) -> Iterator[Json]:
        if not self._has_begun:
            self._has_begun = True
            yield from self._begin()
        for part in chat.parts():
            if self._part is None or (part.kind, part.index) != (self._part.kind, self._part.index):
                yield from self._close_part()
                if part.kind == "call" and part.index in self._closed:
                    raise GatewayError("The upstream's stream mixes the arguments of several tool calls.")
                self._part, self._part_texts = part, []
                self._has_calls |= part.kind == "call"
                yield from self._open(part)
            if part.text:
                self._part_texts.append(part.text)
                yield from self._delta(part)

    def _close_part(self) -> Iterator[Json]:
        part, self._part = self._part, None
        if part is not None:
            if part.kind == "call":
                self._closed.add(part.index)
            yield from self._close(replace(part, text="".join(self._part_texts)))

    @abstractmethod
    def _begin(self) -> Iterator[Json]:
        """Yield the first events of the stream."""

    @abstractmethod
    def _open(self, part: Part) -> Iterator[Json]:
        """Yield the events before the first piece of a part."""

    @abstractmethod
    def _delta(self, part: Part) -> Iterator[Json]:
        """Yield the events of a piece."""

    @abstractmethod
    def _close(self, part: Part) -> Iterator[Json]:
        """Yield the events after the last piece; `part` is the whole."""

    @abstractmethod
    def _end(self) -> Iterator[Json]:
        """Yield the last events of the stream."""


def limits(max_tokens: int | None, unsupported: Collection[str]) -> Json:
    """Return the limit of output tokens under the name that the server takes."""
    name = "max_completion_tokens" if "max_tokens" in unsupported else "max_tokens"
    return {} if max_tokens is None else {name: max_tokens}


def streaming(is_streamed: bool, unsupported: Collection[str]) -> Json:
    """Return the fields of a request that is streamed, with its usage; none if it is not."""
    if not is_streamed:
        return {}
    return {"stream": True} | ({} if "stream_options" in unsupported else {"stream_options": {"include_usage": True}})


def parse_arguments(arguments: str) -> Any:  # Any: JSON
    """Return the arguments of a call, None if they are not JSON."""
    try:
        return msgspec.json.decode(arguments or "{}")
    except (ValueError, RecursionError):
        return None


def _event(event: Json) -> bytes:
    return sse.event(msgspec.json.encode(event), event["type"])
