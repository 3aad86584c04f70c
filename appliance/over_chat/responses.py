"""OpenAI's responses over chat completions: the request, and a whole response.

Source: https://platform.openai.com/docs/api-reference/responses. Reasoning of earlier turns is left out, and so are
fields that change nothing in the text, such as `include`; what changes the meaning of a request is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from appliance.core.errors import RequestError
from appliance.over_chat import chat as chats
from appliance.over_chat.chat import Json
from appliance.over_chat.translator import limits, streaming

SUPPORTED = "a model with chat completions alone"

# A custom tool takes any text; over chat completions it is a function with one argument.
CUSTOM_INPUT = "input"

# Without a store they have nothing to refer to.
_STORED = ("previous_response_id", "conversation", "prompt")


class _Text(Struct, tag="input_text"):
    text: str


class _PlainText(Struct, tag="text"):
    text: str


class _OutputText(Struct, tag="output_text"):
    text: str


class _Image(Struct, tag="input_image"):
    image_url: str | None = None
    detail: str | None = None


_Content = _Text | _PlainText | _OutputText | _Image


class _Message(Struct, tag="message"):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[_Content]


class _FunctionCall(Struct, tag="function_call"):
    call_id: str
    name: str
    arguments: str = "{}"
    namespace: str | None = None


class _CustomCall(Struct, tag="custom_tool_call"):
    call_id: str
    name: str
    input: str = ""


class _FunctionOutput(Struct, tag="function_call_output"):
    call_id: str
    output: str | list[_Content]


class _Reasoning(Struct, tag="reasoning"):
    pass


_Item = _Message | _FunctionCall | _FunctionOutput | _CustomCall | _Reasoning


class _Function(Struct, tag="function"):
    name: str
    parameters: dict[str, Any] | None = None  # Any: JSON values
    description: str | None = None
    strict: bool | None = None


class _CustomTool(Struct, tag="custom"):
    name: str
    description: str | None = None


class _Namespace(Struct, tag="namespace"):
    name: str
    tools: list[_Function | _CustomTool]


class _NamedChoice(Struct):
    type: Literal["function", "custom"]
    name: str


class _ReasoningOptions(Struct):
    effort: str | None = None


class _TextOptions(Struct):
    format: dict[str, Any] | None = None  # Any: JSON values
    verbosity: str | None = None


class Request(Struct):
    """A request for a response."""

    input: str | list[_Item]
    instructions: str | None = None
    tools: list[_Function | _CustomTool | _Namespace] | None = None
    tool_choice: Literal["auto", "none", "required"] | _NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    reasoning: _ReasoningOptions | None = None
    text: _TextOptions | None = None
    stream: bool | None = None
    background: bool | None = None

    @classmethod
    def of(cls, body: Json) -> Request:
        """Return a request; raises RequestError if it is wrong, or has no counterpart in chat completions."""
        for name in _STORED:
            if body.get(name) is not None:
                raise _unsupported(name, "refers to what is stored")
        request: Request = chats.decode(body, cls, SUPPORTED)
        if request.background:
            raise _unsupported("background", "is true")
        if request.top_logprobs:
            raise _unsupported("top_logprobs", f"is {request.top_logprobs}")
        return request

    @property
    def custom_tools(self) -> frozenset[str]:
        """The names of the tools that take any text."""
        return frozenset(name for name, tool in self._flat_tools() if isinstance(tool, _CustomTool))

    @property
    def namespaces(self) -> Mapping[str, Mapping[str, str]]:
        """The members `namespace` and `name` of a call, by the name of the function in the chat completion."""
        spaces = [tool for tool in self.tools or () if isinstance(tool, _Namespace)]
        return {
            _flat_name(space.name, tool.name): {"namespace": space.name, "name": tool.name}
            for space in spaces
            for tool in space.tools
        }

    def _flat_tools(self) -> Iterator[tuple[str, _Function | _CustomTool]]:
        for tool in self.tools or ():
            if isinstance(tool, _Namespace):
                yield from ((_flat_name(tool.name, each.name), each) for each in tool.tools)
            else:
                yield tool.name, tool

    def chat(self, unsupported: Collection[str]) -> Json:
        """Return the chat completion to ask for."""
        options, effort = self.text or _TextOptions(), self.reasoning and self.reasoning.effort
        fields = chats.without_none(
            temperature=self.temperature,
            top_p=self.top_p,
            reasoning_effort=effort or None,
            verbosity=options.verbosity,
            response_format=_response_format(options.format),
            **self._tools(),
        )
        limit = limits(self.max_output_tokens, unsupported)
        return {"messages": self._messages()} | fields | limit | streaming(self.stream is True, unsupported)

    def _messages(self) -> list[Json]:
        """Return the messages; what leads them as instructions is one, because many templates accept only one."""
        messages = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        items = [_Message("user", self.input)] if isinstance(self.input, str) else self.input
        for item in items:
            for message in _chat_messages(item):
                _append(messages, message)
        return messages

    def _tools(self) -> Json:
        choice = self.tool_choice
        tools = [_tool(name, tool) for name, tool in self._flat_tools()]
        if not tools:
            return {}
        chosen = {"type": "function", "function": {"name": choice.name}} if isinstance(choice, _NamedChoice) else choice
        return {"tools": tools, "tool_choice": chosen, "parallel_tool_calls": self.parallel_tool_calls}


def _chat_messages(item: _Item) -> list[Json]:
    match item:
        case _Message(content=[]):
            # Items that were left out.
            return []
        case _Message():
            # Few templates know OpenAI's newer word for the same role.
            role = "system" if item.role == "developer" else item.role
            return [{"role": role, "content": _content(item.content)}]
        case _FunctionCall():
            return [_calling(item.call_id, _flat_name(item.namespace, item.name), item.arguments)]
        case _CustomCall():
            return [_calling(item.call_id, item.name, msgspec.json.encode({CUSTOM_INPUT: item.input}).decode())]
        case _FunctionOutput():
            return _tool_messages(item)
        case _:
            return []


def _flat_name(namespace: str | None, name: str) -> str:
    """Return the name of a function in a chat completion, which has no namespaces; as in vLLM."""
    return name if namespace is None else f"{namespace}__{name}"


def _calling(call_id: str, name: str, arguments: str) -> Json:
    return {"role": "assistant", "content": None, "tool_calls": [chats.tool_call(call_id, name, arguments)]}


def _tool_messages(item: _FunctionOutput) -> list[Json]:
    """Return the result of a tool, which is a text; images of it follow in a message of the user."""
    parts = [] if isinstance(item.output, str) else item.output
    images = [part for part in parts if isinstance(part, _Image)]
    text = item.output if isinstance(item.output, str) else _content([part for part in parts if part not in images])
    message = {"role": "tool", "tool_call_id": item.call_id, "content": text}
    return [message, *([{"role": "user", "content": _content(images)}] if images else [])]


def _append(messages: list[Json], message: Json) -> None:
    """Append a message, as a part of the last one where they are one turn."""
    last: Json = messages[-1] if messages else {}
    if message.get("tool_calls") and last.get("role") == "assistant":
        last["tool_calls"] = [*last.get("tool_calls", ()), *message["tool_calls"]]
    elif message["role"] == "system" and len(messages) == 1 and last["role"] == "system":
        last["content"] = f"{last['content']}\n\n{message['content']}"
    else:
        messages.append(message)


def _content(content: str | Sequence[_Content]) -> str | list[Json]:
    if isinstance(content, str):
        return content
    return chats.content([_part(part) for part in content])


def _part(part: _Content) -> Json:
    if not isinstance(part, _Image):
        return {"type": "text", "text": part.text}
    if part.image_url is None:
        raise _unsupported("input_image.file_id", "names a file")
    return {"type": "image_url", "image_url": chats.without_none(url=part.image_url, detail=part.detail)}


def _tool(name: str, tool: _Function | _CustomTool) -> Json:
    if isinstance(tool, _Function):
        return chats.tool(name, tool.description, tool.parameters or {"type": "object"}, tool.strict)
    properties = {CUSTOM_INPUT: {"type": "string"}}
    schema = {"type": "object", "properties": properties, "required": [CUSTOM_INPUT]}
    return chats.tool(name, tool.description, schema, None)


def _response_format(form: Json | None) -> Json | None:
    if form is None or form.get("type") == "text":
        return None
    if form.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {name: value for name, value in form.items() if name != "type"}}
    return form


def _unsupported(path: str, fault: str) -> RequestError:
    message = f"{path} {fault}, which {SUPPORTED} does not take; leave it out"
    return RequestError(message, param=path, code="unsupported_parameter")
