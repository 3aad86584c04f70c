"""A chat completion as a completion: the conversation becomes a prompt, every other field goes along.

Source: https://platform.openai.com/docs/api-reference/chat/create and .../completions/create; fields beyond them are
vLLM's, https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.adapters.jinja import ChatTemplate
from appliance.adapters.messages import Json, for_template
from appliance.core.errors import RequestError

# What the prompt is made of, and what has no meaning in a completion.
_OF_CHAT = frozenset(
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

# Running a client's template would let it write any prompt; functions are tools by an older name.
_REFUSED: Mapping[str, str] = {
    "chat_template": "is not taken from requests; this model has a template of its own",
    "functions": "is deprecated; send tools",
    "function_call": "is deprecated; send tool_choice",
    "audio": "is not supported; this model answers with text",
}


@dataclass(frozen=True, slots=True)
class ChatRequestBuilder:
    """How a model chats that only completes: its template, and what ends a turn."""

    template: ChatTemplate
    stop: Sequence[str] = ()

    def completion(self, request: Json) -> Json:
        """The completion request whose answer continues the conversation; blocks while the template is rendered.

        Raises:
            RequestError: the request is wrong, or wants what this model cannot do.
        """
        return _completion(request, self.prompt(request), self.stop)

    async def completion_async(self, request: Json) -> Json:
        """The same, without blocking the event loop."""
        return await self.template.run(self.completion, request)

    def prompt(self, request: Json) -> str:
        """The conversation as the text to continue.

        Raises:
            RequestError: the request is wrong, or wants what this model cannot do.
        """
        _refuse(request)
        messages = for_template(request.get("messages"), knows_developer=self.template.knows_developer)
        is_continued = bool(request.get("continue_final_message"))
        opens = request.get("add_generation_prompt")
        if is_continued and opens:
            raise RequestError(
                "continue_final_message and add_generation_prompt exclude each other", param="add_generation_prompt"
            )
        variables = {
            **_mapping(request, "chat_template_kwargs"),
            "messages": messages,
            "tools": self._tools(request),
            "documents": request.get("documents"),
            "add_generation_prompt": not is_continued if opens is None else bool(opens),
        }
        if request.get("reasoning_effort") is not None:
            variables["reasoning_effort"] = request["reasoning_effort"]
        prompt = self.template.render(variables)
        return _continued(prompt, messages[-1]["content"]) if is_continued else prompt

    def _tools(self, request: Json) -> list[Json] | None:
        """The tools, as far as they may be called."""
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


@dataclass(frozen=True, slots=True)
class Prompted:
    """The same where somebody else has made the prompt."""

    text: str
    stop: Sequence[str] = ()

    async def completion_async(self, request: Json) -> Json:
        """The completion request whose answer continues the prompt.

        Raises:
            RequestError: the request wants what this model cannot do.
        """
        _refuse(request)
        return _completion(request, self.text, self.stop)


def _refuse(request: Json) -> None:
    for field, why in _REFUSED.items():
        if request.get(field) is not None:
            raise RequestError(f"{field} {why}", param=field, code="unsupported_parameter")


def _completion(request: Json, prompt: str, always: Sequence[str]) -> Json:
    made = {name: value for name, value in request.items() if name not in _OF_CHAT and value is not None}
    made["prompt"] = prompt
    # The newer name wins, as it does for OpenAI.
    limit = request.get("max_completion_tokens") or request.get("max_tokens")
    if limit is not None:
        made["max_tokens"] = limit
    if made.get("response_format") == {"type": "text"}:
        del made["response_format"]
    if (stop := _stops(request.get("stop"), always)) is not None:
        made["stop"] = stop
    return made | _logprobs(request)


def _stops(asked: Any, always: Sequence[str]) -> Any:  # Any: JSON values
    if not always or not isinstance(asked, str | list | None):
        return asked
    wanted = [asked] if isinstance(asked, str) else asked or []
    return list(dict.fromkeys([*wanted, *always]))


def _logprobs(request: Json) -> Json:
    """Chat has a flag and a number, completions have the number alone."""
    top = request.get("top_logprobs")
    if not request.get("logprobs"):
        if top:
            raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
        return {}
    if request["logprobs"] is not True or not isinstance(top, int | None) or isinstance(top, bool):
        raise RequestError("logprobs must be true or false, and top_logprobs a whole number", param="logprobs")
    return {"logprobs": top or 0}


def _mapping(request: Json, field: str) -> Json:
    value = request.get(field)
    if value is not None and not isinstance(value, dict):
        raise RequestError(f"{field} must be a mapping", param=field)
    return value or {}


def _continued(prompt: str, last: str) -> str:
    """The prompt up to the end of the last message, without what the template puts behind it."""
    text = last.strip()
    at = prompt.rfind(text)
    if at < 0:
        raise RequestError("The chat template of this model changes the last message, so it cannot be continued")
    return prompt[: at + len(text)]
