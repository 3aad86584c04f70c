"""Anthropic's messages over chat completions.

Sources: https://docs.anthropic.com/en/api/messages, .../messages-streaming, .../messages-count-tokens and .../errors.
Thinking of earlier turns, `cache_control`, `thinking`, `metadata` and the effort have no counterpart that every server
takes, so they are left out; what changes the meaning of a request is refused.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any, Literal

import msgspec
from msgspec import Struct

from appliance.core.errors import (
    RequestError,
    UnsupportedOperationError,
    anthropic_error_type,
    anthropic_message,
)
from appliance.over_chat import chat as chats
from appliance.over_chat.chat import Json, Part
from appliance.over_chat.translator import StreamTranslator, Translator, limits, parse_arguments, streaming

_SUPPORTED = "a model with chat completions alone"

_FIELD_NAMES = {"max_completion_tokens": "max_tokens", "response_format": "output_config.format"} | {
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "stop": "stop_sequences",
}

_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "function_call": "tool_use"} | {
    "content_filter": "refusal"
}

# What Anthropic's documentation has clients do about arguments that are not JSON:
# https://docs.anthropic.com/en/docs/agents-and-tools/tool-use/fine-grained-tool-streaming
_INVALID_JSON = "INVALID_JSON"


class _Text(Struct, tag="text"):
    text: str


class _Base64(Struct, tag="base64"):
    media_type: str
    data: str


class _Url(Struct, tag="url"):
    url: str


class _Image(Struct, tag="image"):
    source: _Base64 | _Url


class _ToolUse(Struct, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]  # Any: JSON values


class _ToolResult(Struct, tag="tool_result"):
    tool_use_id: str
    content: str | list[_Text | _Image] | None = None
    is_error: bool | None = None


class _Thinking(Struct, tag="thinking"):
    pass


class _RedactedThinking(Struct, tag="redacted_thinking"):
    pass


_Block = _Text | _Image | _ToolUse | _ToolResult | _Thinking | _RedactedThinking


class _Message(Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[_Block]


class _Tool(Struct):
    name: str
    input_schema: dict[str, Any] | None = None  # Any: JSON values
    description: str | None = None
    type: str | None = None
    strict: bool | None = None


class _ToolChoice(Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _OutputConfig(Struct):
    format: dict[str, Any] | None = None  # Any: JSON values


class _Request(Struct):
    messages: list[_Message]
    max_tokens: int | None = None
    system: str | list[_Text] | None = None
    tools: list[_Tool] | None = None
    tool_choice: _ToolChoice | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stream: bool | None = None
    output_config: _OutputConfig | None = None
    mcp_servers: list[Any] | None = None  # Any: JSON


class MessageTranslator(StreamTranslator):
    """A message over a chat completion."""

    field_names = _FIELD_NAMES

    def __init__(self, body: Json, model: str, unsupported: Collection[str] = ()) -> None:
        super().__init__(model)
        request: _Request = chats.decode(body, _Request, _SUPPORTED)
        self.is_streamed = request.stream is True
        self.request = _chat_request(request) | limits(request.max_tokens, unsupported)
        self.request |= streaming(self.is_streamed, unsupported)
        self._id = f"msg_{uuid.uuid4().hex}"
        self._index = -1

    def _error(self, status: int, error: Json) -> Json:
        return _anthropic_error(status, error)

    def _whole(self, parts: list[Part]) -> Json:
        self._has_calls = any(part.kind == "call" for part in parts)
        return self._message([_block(part) for part in parts]) | self._stop() | {"usage": self._counts()}

    def _message(self, content: list[Json]) -> Json:
        head = {"id": self._id, "type": "message", "role": "assistant", "model": self.model, "content": content}
        return head | {"stop_reason": None, "stop_sequence": None}

    def _stop(self) -> Json:
        reason, sequence = self._ending
        if self._has_calls and reason == "stop":
            reason = "tool_calls"
        if sequence is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": sequence}
        return {"stop_reason": _STOP_REASONS.get(reason, "end_turn"), "stop_sequence": None}

    def _counts(self) -> Json:
        usage = self._usage
        # Anthropic's count leaves out those of its cache.
        return {
            "input_tokens": max(0, (usage.prompt_tokens or 0) - usage.cached),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached,
            "output_tokens": usage.completion_tokens or 0,
        }

    def _begin(self) -> Iterator[Json]:
        yield {"type": "message_start", "message": self._message([]) | {"usage": self._counts()}}

    def _open(self, part: Part) -> Iterator[Json]:
        self._index += 1
        block = _block(replace(part, text=""))
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, part: Part) -> Iterator[Json]:
        match part.kind:
            case "text":
                delta = {"type": "text_delta", "text": part.text}
            case "reasoning":
                delta = {"type": "thinking_delta", "thinking": part.text}
            case "call":
                delta = {"type": "input_json_delta", "partial_json": part.text}
        yield {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _close(self, part: Part) -> Iterator[Json]:
        if part.kind == "reasoning":
            delta = {"type": "signature_delta", "signature": ""}
            yield {"type": "content_block_delta", "index": self._index, "delta": delta}
        yield {"type": "content_block_stop", "index": self._index}

    def _end(self) -> Iterator[Json]:
        yield {"type": "message_delta", "delta": self._stop(), "usage": self._counts()}
        yield {"type": "message_stop"}


class CountTokensTranslator(Translator):
    """The count of a message's tokens, which a chat completion of one token tells."""

    field_names = _FIELD_NAMES

    def __init__(self, body: Json, model: str, unsupported: Collection[str] = ()) -> None:
        super().__init__(model)
        self.request = _chat_request(chats.decode(body, _Request, _SUPPORTED)) | limits(1, unsupported)

    def _error(self, status: int, error: Json) -> Json:
        return _anthropic_error(status, error)

    def _whole(self, parts: list[Part]) -> Json:  # noqa: ARG002 - the text is not needed
        if self._usage.prompt_tokens is None:
            raise UnsupportedOperationError(
                "The server of this model does not say how many tokens a request has, so they cannot be counted",
                code="unsupported_operation",
            )
        return {"input_tokens": self._usage.prompt_tokens}


def _anthropic_error(status: int, error: Json) -> Json:
    message = anthropic_message(error.get("message", ""), error.get("code"), error.get("param"))
    return {"type": "error", "error": error | {"type": anthropic_error_type(status), "message": message}}


def _block(part: Part) -> Json:
    """Return a block of the response; a call without arguments is the beginning of one."""
    match part.kind:
        case "text":
            return {"type": "text", "text": part.text}
        case "reasoning":
            return {"type": "thinking", "thinking": part.text, "signature": ""}
        case "call":
            arguments = parse_arguments(part.text)
            if not isinstance(arguments, dict):
                arguments = {_INVALID_JSON: part.text}
            name = part.call_id or f"toolu_{uuid.uuid4().hex[:24]}"
            return {"type": "tool_use", "id": name, "name": part.name, "input": arguments}


def _chat_request(request: _Request) -> Json:
    if request.mcp_servers:
        raise _unsupported("mcp_servers", "has servers")
    messages = [] if request.system is None else [{"role": "system", "content": _text(request.system)}]
    for message in request.messages:
        messages += _chat_messages(message)
    return {"messages": messages} | chats.without_none(
        stop=request.stop_sequences or None,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        response_format=_response_format(request.output_config),
        **_tools(request),
    )


def _text(blocks: str | list[_Text]) -> str:
    return blocks if isinstance(blocks, str) else "\n".join(block.text for block in blocks)


def _chat_messages(message: _Message) -> list[Json]:
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    return _assistant_message(message.content) if message.role == "assistant" else _user_messages(message)


def _assistant_message(blocks: list[_Block]) -> list[Json]:
    calls = [
        chats.tool_call(block.id, block.name, msgspec.json.encode(block.input).decode())
        for block in blocks
        if isinstance(block, _ToolUse)
    ]
    text = "".join(block.text for block in blocks if isinstance(block, _Text))
    if not calls:
        return [{"role": "assistant", "content": text}] if text else []
    return [{"role": "assistant", "content": text or None, "tool_calls": calls}]


def _user_messages(message: _Message) -> list[Json]:
    """Return the results of tools, which must follow their calls, and then what the user says.

    A tool's message is a text, so images of its result follow in the user's message.
    """
    results: list[Json] = []
    parts: list[Json] = []
    for block in message.content:
        if isinstance(block, _ToolResult):
            blocks = [_Text(block.content)] if isinstance(block.content, str) else block.content or []
            text = _text([each for each in blocks if isinstance(each, _Text)])
            prefix = "Error: " if block.is_error else ""
            results.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": prefix + text})
            parts += [_part(each) for each in blocks if isinstance(each, _Image)]
        elif isinstance(block, _Text | _Image):
            parts.append(_part(block))
    return results + ([{"role": message.role, "content": chats.content(parts)}] if parts else [])


def _part(block: _Text | _Image) -> Json:
    if isinstance(block, _Text):
        return {"type": "text", "text": block.text}
    source = block.source
    url = source.url if isinstance(source, _Url) else f"data:{source.media_type};base64,{source.data}"
    return {"type": "image_url", "image_url": {"url": url}}


def _tools(request: _Request) -> Json:
    tools = []
    for index, tool in enumerate(request.tools or ()):
        if tool.type not in (None, "custom"):
            raise _unsupported(f"tools[{index}].type", f"is {tool.type!r}")
        tools.append(chats.tool(tool.name, tool.description, tool.input_schema or {"type": "object"}, tool.strict))
    choice = request.tool_choice
    if choice is not None and choice.type == "tool" and choice.name not in [tool.name for tool in request.tools or ()]:
        raise RequestError(
            f"tool_choice.name is {str(choice.name)[:80]!r}, the name of no tool of the request", param="tool_choice"
        )
    if not tools or choice is None:
        return {"tools": tools} if tools else {}
    named = {"type": "function", "function": {"name": choice.name}}
    return {
        "tools": tools,
        "tool_choice": {"any": "required", "tool": named}.get(choice.type, choice.type),
        "parallel_tool_calls": False if choice.disable_parallel_tool_use else None,
    }


def _response_format(config: _OutputConfig | None) -> Json | None:
    if config is None or config.format is None:
        return None
    if config.format.get("type") != "json_schema":
        raise _unsupported("output_config.format.type", f"is {config.format.get('type')!r}")
    schema = {"name": "output", "schema": config.format.get("schema"), "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def _unsupported(path: str, fault: str) -> RequestError:
    message = f"{path} {fault}, which {_SUPPORTED} does not take; leave it out"
    return RequestError(message, param=path, code="unsupported_parameter")
