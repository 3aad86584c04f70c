"""A chat completion, whole or in chunks, as other protocols see it: the parts of a turn, its end and its usage.

Sources: https://platform.openai.com/docs/api-reference/chat/object and .../chat-streaming; `reasoning_content` is
DeepSeek's (https://api-docs.deepseek.com/guides/thinking_mode), `reasoning` and `stop_reason` are vLLM's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import msgspec
from msgspec import Struct, field

from appliance.core.errors import GatewayError, RequestError
from appliance.core.server_errors import ServerError

Json = dict[str, Any]  # Any: JSON values

Kind = Literal["reasoning", "text", "call"]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a turn; pieces with the same kind and index are one whole."""

    kind: Kind
    text: str
    """The text; of a call its arguments, as JSON."""
    index: int = 0
    """The number of a call among those of its turn."""
    call_id: str = ""
    """Of a call, with its first piece, as is the name."""
    name: str = ""


class _Details(Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class Usage(Struct):
    """The tokens of a completion."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None

    @property
    def cached(self) -> int:
        """Prompt tokens that came from a cache."""
        return (self.prompt_tokens_details and self.prompt_tokens_details.cached_tokens) or 0

    @property
    def reasoning(self) -> int:
        """Output tokens of the reasoning."""
        return (self.completion_tokens_details and self.completion_tokens_details.reasoning_tokens) or 0


class _Function(Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Message(Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning: Any = None  # Any: some servers have an object here
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(Struct):
    index: int = 0
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class Chat(Struct):
    """A chat completion, or a chunk of one; of several choices the first counts."""

    choices: list[_Choice] = field(default_factory=list)
    usage: Usage | None = None
    error: Any = None  # Any: JSON

    @classmethod
    def of(cls, value: bytes | Json) -> Self:
        """Return what a server sent.

        Raises:
            GatewayError: it is no chat completion, or an error in its place.
        """
        try:
            chat = msgspec.json.decode(value, type=cls) if isinstance(value, bytes) else msgspec.convert(value, cls)
        except (ValueError, RecursionError) as error:
            raise GatewayError(
                "The upstream's response is not a chat completion.",
                detail=f"its response is not a chat completion: {error}",
            ) from error
        if chat.error is not None:
            message = ServerError.of_json({"error": chat.error}).message
            raise GatewayError(message or "The upstream failed in the middle of its response.")
        return chat

    @property
    def choice(self) -> _Choice | None:
        """The first choice."""
        return next((choice for choice in self.choices if choice.index == 0), None)

    def parts(self) -> Iterator[Part]:
        """Yield the parts that it has, in the order in which models generate them."""
        choice = self.choice
        message = None if choice is None else choice.delta or choice.message
        if message is None:
            return
        reasoning = message.reasoning_content or message.reasoning
        if reasoning and isinstance(reasoning, str):
            yield Part("reasoning", reasoning)
        if text := message.content or message.refusal:
            yield Part("text", text)
        for position, call in enumerate(message.tool_calls or ()):
            function = call.function or _Function()
            index = position if call.index is None else call.index
            yield Part("call", function.arguments or "", index, call.id or "", function.name or "")


class Ending(NamedTuple):
    """How a completion ended."""

    reason: str = ""
    """OpenAI's finish reason; empty while it goes on."""
    stop_sequence: str | None = None
    """The client's stop sequence that ended it, where the server says so."""

    @classmethod
    def of(cls, chat: Chat) -> Ending | None:
        """Return the ending in a completion or a chunk; None if it has none."""
        choice = chat.choice
        if choice is None or not choice.finish_reason:
            return None
        return cls(choice.finish_reason, choice.stop_reason if isinstance(choice.stop_reason, str) else None)


def decode(body: Mapping[str, Any], form: type[Struct], supported: str) -> Any:  # Any: an instance of `form`
    """Return a request's JSON as `form`; `supported` says what takes less than the protocol has.

    Raises:
        RequestError: it has another form, or something that has no counterpart in chat completions.
    """
    try:
        return msgspec.convert(body, form)
    except msgspec.ValidationError as error:
        fault, _, path = str(error).partition(" - at `$")
        path = path.removesuffix("`").removeprefix(".")
        if fault.startswith("Invalid value ") and path.endswith(".type"):
            value = fault.removeprefix("Invalid value ")
            message = f"{path} is {value}, which {supported} does not take; leave it out"
            raise RequestError(message, param=path, code="unsupported_parameter") from error
        raise RequestError(f"{path or 'The body'}: {fault}", param=path or None) from error


def tool(name: str, description: str | None, parameters: object, strict: bool | None) -> Json:
    """Return a function in the form of chat completions."""
    function: Json = {"name": name, "parameters": parameters}
    if description is not None:
        function["description"] = description
    if strict is not None:
        function["strict"] = strict
    return {"type": "function", "function": function}


def tool_call(call_id: str, name: str, arguments: str) -> Json:
    """Return a call of a function in the form of chat completions."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def content(parts: list[Json]) -> str | list[Json]:
    """Return parts of a message as one text if they have no image: many servers take only that."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def without_none(**fields: object) -> Json:
    """Return the fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}
