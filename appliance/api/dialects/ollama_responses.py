"""Responses of Ollama's API from those of OpenAI's: whole ones, and streams with an object on each line.

Source: https://docs.ollama.com/api, and https://github.com/ollama/ollama, api/types.go.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from appliance.api.inner_requests import convert_event
from appliance.core.errors import GatewayError
from appliance.core.openai_types import Json, Usage
from appliance.core.request_context import RequestContext, current_context

_NANOSECONDS = 1_000_000_000


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class _Text(msgspec.Struct):
    """A message, or a delta of it."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class _Logprobs(msgspec.Struct):
    content: list[Json] | None = None


class _Choice(msgspec.Struct):
    message: _Text | None = None
    delta: _Text | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None

    @property
    def told(self) -> _Text:
        """The text of a chat, a completion, or a part of either."""
        return self.message or self.delta or _Text(self.text)


class Completion(msgspec.Struct):
    """A chat completion, a completion, or a chunk of either."""

    choices: list[_Choice] = []
    usage: Usage | None = None


@dataclass(slots=True)
class ResponseWriter:
    """Writes the response to one request of `/api/chat`, or if not `is_chat`, of `/api/generate`."""

    model: str
    is_chat: bool
    context: RequestContext | None = field(default_factory=current_context)
    began: float = field(default_factory=time.monotonic)
    first: float | None = None

    def whole(self, completion: Completion) -> Json:
        """Return the response that is no stream."""
        if not completion.choices:
            raise GatewayError("The model's answer has no choice")
        choice = completion.choices[0]
        calls, broken = _tool_calls(choice.told.tool_calls or ())
        part = self._part((choice.told.content or "") + broken, _thinking(choice.told), calls, choice.logprobs)
        return {**part, **self.end(choice.finish_reason, completion.usage)}

    async def lines(self, chunks: AsyncGenerator[Any]) -> AsyncGenerator[bytes]:  # Any: JSON values
        """Yield the response as lines, from the chunks of a stream; tool calls come whole."""
        calls, reason, usage = dict[int, _Call](), None, None
        async with aclosing(chunks):
            async for value in chunks:
                chunk = convert_event(value, Completion)
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    reason, told = choice.finish_reason or reason, choice.told
                    for part in told.tool_calls or ():
                        _add(calls, part)
                    thinking = _thinking(told)
                    if told.content or thinking:
                        self.first = self.first or time.monotonic()
                        yield _line({**self._part(told.content or "", thinking, [], choice.logprobs), "done": False})
        found, broken = _tool_calls([calls[index] for index in sorted(calls)])
        if found or broken:
            yield _line({**self._part(broken, "", found), "done": False})
        yield _line({**self._part("", "", []), **self.end(reason, usage)})

    def end(self, reason: str | None, usage: Usage | None) -> Json:
        """Return the fields of the last object of a response; durations are in nanoseconds."""
        ended, context = time.monotonic(), self.context
        first = self.first or (context.first if context else None) or ended
        counts = {
            "prompt_eval_count": usage.prompt_tokens if usage else None,
            "eval_count": usage.completion_tokens if usage else None,
        }
        return {
            "done": True,
            "done_reason": "length" if reason == "length" else "stop",
            "total_duration": _nanoseconds(ended - self.began),
            "load_duration": 0,
            "prompt_eval_duration": _nanoseconds(first - self.began),
            # Clients divide by it.
            "eval_duration": max(1, _nanoseconds(ended - first)),
            **{name: count for name, count in counts.items() if isinstance(count, int)},
        }

    def _part(self, text: str, thinking: str, calls: Sequence[Json], logprobs: _Logprobs | None = None) -> Json:
        more: Json = {**({"thinking": thinking} if thinking else {}), **({"tool_calls": calls} if calls else {})}
        told = {"message": {"role": "assistant", "content": text, **more}}
        scores = {"logprobs": logprobs.content} if logprobs and logprobs.content else {}
        return {
            "model": self.model,
            "created_at": now(),
            **(told if self.is_chat else {"response": text, **more}),
            **scores,
        }


def now() -> str:
    """Return the time of creation for a new response."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _add(calls: dict[int, _Call], part: _Call) -> None:
    """Add a part of a tool call, whose arguments come in pieces."""
    call = calls.setdefault(part.index, _Call(part.index, part.id, _Function("", "")))
    call.id = call.id or part.id
    call.function.name = (call.function.name or "") + (part.function.name or "")
    call.function.arguments = (call.function.arguments or "") + (part.function.arguments or "")


def _tool_calls(calls: Sequence[_Call]) -> tuple[Sequence[Json], str]:
    """Return the calls, whose arguments are objects, and as text those whose arguments the model did not finish."""
    found, broken = list[Json](), ""
    for index, call in enumerate(calls):
        name, text = call.function.name or "", call.function.arguments or "{}"
        try:
            arguments = msgspec.json.decode(text, type=Json)
        except (ValueError, RecursionError):
            broken += f"{name}({text})"
            continue
        function = {"index": index, "name": name, "arguments": arguments}
        found.append({"id": call.id, "function": function} if call.id else {"function": function})
    return found, broken


def _thinking(told: _Text) -> str:
    return told.reasoning or told.reasoning_content or ""


def _nanoseconds(seconds: float) -> int:
    return round(seconds * _NANOSECONDS)


def _line(value: Json) -> bytes:
    return msgspec.json.encode(value) + b"\n"
