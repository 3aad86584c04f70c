"""OpenAI's responses over chat completions: the response, whole and as events.

Source: https://platform.openai.com/docs/api-reference/responses/object and .../responses-streaming
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

from appliance.over_chat.chat import Json, Part
from appliance.over_chat.responses import CUSTOM_INPUT, Request
from appliance.over_chat.translator import StreamTranslator, parse_arguments

# Fields of the request that the response repeats, with what they are where the request has none.
_REPEATED: Json = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}

# Of these there are none here.
_ABSENT: Json = {
    "background": False,
    "error": None,
    "frequency_penalty": 0.0,
    "max_tool_calls": None,
    "presence_penalty": 0.0,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "service_tier": "default",
    "store": False,
    "top_logprobs": 0,
}

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}

_ID_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "custom_tool_call": "ctc"}


class ResponseTranslator(StreamTranslator):
    """A response over a chat completion."""

    field_names = {  # noqa: RUF012 - never changed
        "max_completion_tokens": "max_output_tokens",
        "max_tokens": "max_output_tokens",
        "messages": "input",
        "reasoning_effort": "reasoning.effort",
        "response_format": "text.format",
        "verbosity": "text.verbosity",
    }

    def __init__(self, body: Json, model: str, unsupported: Collection[str] = ()) -> None:
        super().__init__(model)
        request = Request.of(body)
        self.is_streamed = request.stream is True
        self.request = request.chat(unsupported)
        self._custom_tools, self._namespaces = request.custom_tools, request.namespaces
        self._repeated = _REPEATED | {name: body[name] for name in _REPEATED if body.get(name) is not None}
        self._id, self._created_at = f"resp_{uuid.uuid4().hex}", int(time.time())
        self._output: list[Json] = []
        self._item: Json = {}
        self._sequence_number = -1

    def _whole(self, parts: list[Part]) -> Json:
        for part in parts:
            self._output.append(self._finished(self._new_item(part), part))
        return self._response(is_finished=True)

    def _response(self, *, is_finished: bool = False) -> Json:
        reason = _INCOMPLETE.get(self._ending.reason) if is_finished else None
        status = "incomplete" if reason else "completed"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created_at,
            "completed_at": int(time.time()) if is_finished and not reason else None,
            "status": status if is_finished else "in_progress",
            "incomplete_details": {"reason": reason} if reason else None,
            "model": self.model,
            "output": self._output,
            "usage": self._counts() if is_finished else None,
            **self._repeated,
            **_ABSENT,
        }

    def _counts(self) -> Json | None:
        usage = self._usage
        if usage.prompt_tokens is None:
            return None
        output = usage.completion_tokens or 0
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": usage.prompt_tokens + output,
        }

    def _new_item(self, part: Part) -> Json:
        """Return the item of a part, without its content."""
        if part.kind == "call":
            kind, key = ("custom_tool_call", "input") if self._is_custom(part) else ("function_call", "arguments")
            call_id = part.call_id or f"call_{uuid.uuid4().hex[:24]}"
            fields: Json = {"call_id": call_id, "name": part.name, **self._namespaces.get(part.name, {}), key: ""}
        elif part.kind == "reasoning":
            kind, fields = "reasoning", {"summary": [], "content": []}
        else:
            kind, fields = "message", {"role": "assistant", "content": []}
        item_id = f"{_ID_PREFIXES[kind]}_{uuid.uuid4().hex}"
        return {"id": item_id, "type": kind, "status": "in_progress", **fields}

    def _finished(self, item: Json, part: Part) -> Json:
        """Return the item with the whole content of its part."""
        if part.kind != "call":
            content: Json = {"content": [_content(part)]}
        elif item["type"] == "custom_tool_call":
            content = {"input": _custom_input(part.text)}
        else:
            content = {"arguments": part.text}
        # An item that the limit of tokens cut off is the last one.
        return item | content | {"status": "completed"}

    def _is_custom(self, part: Part) -> bool:
        return part.kind == "call" and part.name in self._custom_tools

    def _event(self, kind: str, **fields: Any) -> Json:  # Any: JSON values
        self._sequence_number += 1
        return {"type": f"response.{kind}", "sequence_number": self._sequence_number, **fields}

    def _item_event(self, kind: str, **fields: Any) -> Json:  # Any: JSON values
        return self._event(kind, item_id=self._item["id"], output_index=len(self._output), **fields)

    def _begin(self) -> Iterator[Json]:
        yield self._event("created", response=self._response())
        yield self._event("in_progress", response=self._response())

    def _open(self, part: Part) -> Iterator[Json]:
        self._item = self._new_item(part)
        yield self._event("output_item.added", output_index=len(self._output), item=self._item)
        if part.kind != "call":
            yield self._item_event("content_part.added", content_index=0, part=_content(replace(part, text="")))

    def _delta(self, part: Part) -> Iterator[Json]:
        match self._item["type"]:
            case "message":
                yield self._item_event("output_text.delta", content_index=0, delta=part.text, logprobs=[])
            case "reasoning":
                yield self._item_event("reasoning_text.delta", content_index=0, delta=part.text)
            case "function_call":
                yield self._item_event("function_call_arguments.delta", delta=part.text)
            case _:
                # The text of a custom tool is known once its JSON is complete.
                return

    def _close(self, part: Part) -> Iterator[Json]:
        item = self._finished(self._item, part)
        match item["type"]:
            case "message":
                yield self._item_event("output_text.done", content_index=0, text=part.text, logprobs=[])
            case "reasoning":
                yield self._item_event("reasoning_text.done", content_index=0, text=part.text)
            case "function_call":
                yield self._item_event("function_call_arguments.done", name=item["name"], arguments=part.text)
            case _:
                yield self._item_event("custom_tool_call_input.delta", delta=item["input"])
                yield self._item_event("custom_tool_call_input.done", input=item["input"])
        if part.kind != "call":
            yield self._item_event("content_part.done", content_index=0, part=_content(part))
        yield self._event("output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)

    def _end(self) -> Iterator[Json]:
        response = self._response(is_finished=True)
        yield self._event(response["status"], response=response)


def _content(part: Part) -> Json:
    if part.kind == "reasoning":
        return {"type": "reasoning_text", "text": part.text}
    return {"type": "output_text", "text": part.text, "annotations": [], "logprobs": []}


def _custom_input(arguments: str) -> str:
    """Return the text for a custom tool; a model that ignores the schema may have written it plainly."""
    decoded = parse_arguments(arguments)
    text = decoded.get(CUSTOM_INPUT) if isinstance(decoded, dict) else None
    return text if isinstance(text, str) else arguments
