"""A chat completion as a completion: a template renders the conversation, every other field is passed on.

Sources: https://platform.openai.com/docs/api-reference/chat/create and .../completions/create; fields beyond them are
vLLM's, https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html; messages for templates,
https://huggingface.co/docs/transformers/chat_templating.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.adapters.templates import ChatTemplate
from appliance.core.errors import RequestError
from appliance.core.openai_types import Json

# Fields that the prompt is made of, and fields without a meaning in a completion.
_CHAT_FIELDS = frozenset(
    {
        "messages",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "documents",
        "chat_template_kwargs",
        "add_generation_prompt",
        "continue_final_message",
        "reasoning_effort",
        "max_completion_tokens",
        "logprobs",
        "top_logprobs",
        "prompt",
        "modalities",
    }
)

# A template of the client could write any prompt; functions are tools by an older name.
_UNSUPPORTED_FIELDS: Mapping[str, str] = {
    "chat_template": "is not taken from requests; this model has a template of its own",
    "functions": "is deprecated; send tools",
    "function_call": "is deprecated; send tool_choice",
    "audio": "is not supported; this model answers with text",
}

_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal"})


@dataclass(frozen=True, slots=True)
class ChatRequestBuilder:
    """Makes completion requests of chats, with a template; `stop` ends a turn besides the client's stop sequences."""

    template: ChatTemplate
    stop: Sequence[str] = ()

    async def completion(self, request: Json) -> Json:
        """Return the completion request that continues the conversation, without blocking the event loop."""
        return completion_request(request, await self.template.run(lambda: self.prompt(request)), self.stop)

    def prompt(self, request: Json) -> str:
        """Return the conversation as the text to continue; blocks while the template is rendered."""
        _require_supported(request)
        messages = template_messages(request.get("messages"), knows_developer=self.template.knows_developer)
        is_continued = bool(request.get("continue_final_message"))
        add_prompt = request.get("add_generation_prompt")
        if is_continued and add_prompt:
            raise RequestError(
                "continue_final_message and add_generation_prompt exclude each other", param="add_generation_prompt"
            )
        keywords = request.get("chat_template_kwargs") or {}
        if not isinstance(keywords, dict):
            raise RequestError("chat_template_kwargs must be a mapping", param="chat_template_kwargs")
        variables = {
            **keywords,
            "messages": messages,
            "tools": self._tools(request),
            "documents": request.get("documents"),
            "add_generation_prompt": not is_continued if add_prompt is None else bool(add_prompt),
        }
        if request.get("reasoning_effort") is not None:
            variables["reasoning_effort"] = request["reasoning_effort"]
        prompt = self.template.render(variables)
        return _without_end(prompt, messages[-1]["content"]) if is_continued else prompt

    def _tools(self, request: Json) -> list[Json] | None:
        """Return the tools that may be called."""
        choice = request.get("tool_choice")
        tools = request.get("tools") or None
        if choice not in (None, "auto", "none"):
            raise RequestError(
                "This model cannot be made to call a tool; tool_choice must be auto or none", param="tool_choice"
            )
        if tools is None or choice == "none":
            return None
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise RequestError("tools must be a list of mappings", param="tools")
        if "tools" not in self.template.variables:
            raise RequestError(
                "The chat template of this model has no place for tools; leave tools out, or send tool_choice: none",
                param="tools",
                code="unsupported_parameter",
            )
        return tools


def _require_supported(request: Json) -> None:
    for field, reason in _UNSUPPORTED_FIELDS.items():
        if request.get(field) is not None:
            raise RequestError(f"{field} {reason}", param=field, code="unsupported_parameter")


def completion_request(request: Json, prompt: str, stop: Sequence[str]) -> Json:
    """Return a chat request as the request for a completion of its prompt, which is rendered already."""
    _require_supported(request)
    completion = {name: value for name, value in request.items() if name not in _CHAT_FIELDS and value is not None}
    completion["prompt"] = prompt
    # The newer name wins, as it does for OpenAI.
    limit = request.get("max_completion_tokens") or request.get("max_tokens")
    if limit is not None:
        completion["max_tokens"] = limit
    if completion.get("response_format") == {"type": "text"}:
        del completion["response_format"]
    requested = request.get("stop")
    # A value that is wrong is passed on, for the target to reject.
    if stop and isinstance(requested, str | list | None):
        own = [requested] if isinstance(requested, str) else requested or []
        completion["stop"] = list(dict.fromkeys([*own, *stop]))
    return completion | _logprobs(request)


def _logprobs(request: Json) -> Json:
    """Chats have a flag and a number, completions the number alone."""
    top = request.get("top_logprobs")
    if not request.get("logprobs"):
        if top:
            raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
        return {}
    if request["logprobs"] is not True or not isinstance(top, int | None) or isinstance(top, bool):
        raise RequestError("logprobs must be true or false, and top_logprobs a whole number", param="logprobs")
    return {"logprobs": top or 0}


def _without_end(prompt: str, last: str) -> str:
    """Return the prompt up to the end of the last message, without what the template adds after it."""
    text = last.strip()
    start = prompt.rfind(text)
    if start < 0:
        raise RequestError("The chat template of this model changes the last message, so it cannot be continued")
    return prompt[: start + len(text)]


def template_messages(messages: Any, *, knows_developer: bool) -> list[Json]:  # Any: JSON values
    """Return the messages of a request as templates take them: content as text, arguments of tool calls as mappings."""
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages is missing; it must be a list of one message or more", param="messages")
    return [_message(message, f"messages[{index}]", knows_developer) for index, message in enumerate(messages)]


def text_messages(messages: Any) -> Any:  # Any: JSON values
    """Return the messages unchanged, except for content in parts, which becomes one text."""
    if not isinstance(messages, list):
        return messages
    return [
        message | {"content": _text(message["content"], f"messages[{index}].content")}
        if isinstance(message, dict) and message.get("content") is not None
        else message
        for index, message in enumerate(messages)
    ]


def _message(message: Any, path: str, knows_developer: bool) -> Json:  # Any: JSON values
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RequestError(f"{path} must be a mapping with a role", param=path)
    converted = message | {"content": _text(message.get("content"), f"{path}.content")}
    if message["role"] == "developer" and not knows_developer:
        # OpenAI's newer word for the same role, which few templates know.
        converted["role"] = "system"
    if message.get("tool_calls"):
        converted["tool_calls"] = [_tool_call(call, f"{path}.tool_calls") for call in message["tool_calls"]]
    else:
        converted.pop("tool_calls", None)
    return converted


def _text(content: Any, path: str) -> str:  # Any: JSON values
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise RequestError(f"{path} must be a text, or a list of parts", param=path)
    return "\n".join(_part(part, path) for part in content)


def _part(part: Any, path: str) -> str:  # Any: JSON values
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise RequestError(f"{path} has a part that is not a mapping with a type, such as text", param=path)
    if kind not in _TEXT_PARTS:
        raise RequestError(f"{path} has a part of type {kind[:80]!r}; this model takes only text", param=path)
    key = "refusal" if kind == "refusal" else "text"
    text = part.get(key)
    if not isinstance(text, str):
        raise RequestError(f"{path} has a part of type {kind!r} whose {key} is not a text", param=path)
    return text


def _tool_call(call: Any, path: str) -> Json:  # Any: JSON values
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise RequestError(f"{path} has a call without a function", param=path)
    arguments = function.get("arguments")
    try:
        # Templates write them in their own way; OpenAI has them as JSON in a text.
        decoded = json.loads(arguments or "{}") if isinstance(arguments, str | None) else arguments
    except ValueError as error:
        raise RequestError(f"{path} has arguments that are not JSON: {error}", param=path) from error
    if not isinstance(decoded, dict):
        raise RequestError(f"{path} has arguments that are not a JSON object", param=path)
    return {**call, "function": function | {"arguments": decoded}}
