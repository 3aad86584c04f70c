"""A completion, or the chunks of one, as a chat completion; stop sequences and tool calls in a text.

Sources: https://platform.openai.com/docs/api-reference/chat/object, .../chat/streaming and .../completions/object.
Models write a tool call as JSON between markers of their own, https://huggingface.co/docs/transformers/chat_extras.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from appliance.config.adapters import ChatConfig, ToolCallsConfig
from appliance.core.errors import GatewayError
from appliance.core.openai_types import Json

_CHOICE_FIELDS = frozenset({"text", "index", "logprobs", "finish_reason"})

# OpenAI's value for a log probability too small to be known.
_MIN_LOGPROB = -9999.0

# How OpenAI writes a token that is part of a character, e.g. `bytes:\xe2\x80`.
_BYTES = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")


@dataclass(frozen=True, slots=True)
class ChatResponseFormat:
    """What the client's request says about the response: the model's name, the role, and how many alternatives."""

    model: str
    role: str
    top_logprobs: int = 0
    tool_calls: ToolCallsConfig | None = None
    """How the text has tool calls; None if the client accepts none."""

    @classmethod
    def of(cls, request: Json, model: str, config: ChatConfig) -> ChatResponseFormat:
        """Return the format of the response to a chat request."""
        may_call = request.get("tools") and request.get("tool_choice") != "none"
        tool_calls = config.tool_calls if may_call else None
        return cls(model, config.response_role, request.get("top_logprobs") or 0, tool_calls)


def chat_completion(completion: Json, form: ChatResponseFormat) -> Json:
    """Return a completion as a chat completion; unknown fields of the target are kept."""
    choices = _choices(completion)
    if not choices:
        raise GatewayError("The target's response is not a completion: it has no choices")
    head = {"id": _chat_id(completion), "object": "chat.completion", "model": form.model}
    return completion | head | {"choices": [_choice(choice, index, form) for index, choice in enumerate(choices)]}


def _choice(choice: Json, index: int, form: ChatResponseFormat) -> Json:
    text, calls = split_tool_calls(choice.get("text") or "", form.tool_calls)
    message = {"role": form.role, "content": text or None if calls else text, "refusal": None}
    return {
        "index": choice.get("index", index),
        "message": message | ({"tool_calls": calls} if calls else {}),
        "logprobs": chat_logprobs(choice.get("logprobs"), form.top_logprobs),
        "finish_reason": _finish_reason(choice.get("finish_reason") or "stop", has_calls=bool(calls)),
        **_unknown_fields(choice),
    }


def _choices(completion: Json) -> list[Json]:
    choices = completion.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise GatewayError("The target's response is not a completion: its choices are not a list of mappings")
    return choices


def _finish_reason(reason: str, *, has_calls: bool) -> str:
    return "tool_calls" if has_calls and reason == "stop" else reason


def _unknown_fields(choice: Json) -> Json:
    return {name: value for name, value in choice.items() if name not in _CHOICE_FIELDS}


def _chat_id(completion: Json) -> str:
    id_ = completion.get("id")
    return f"chatcmpl-{str(id_).removeprefix('cmpl-') if id_ else uuid.uuid4().hex}"


async def chat_chunks(chunks: AsyncGenerator[Json], form: ChatResponseFormat) -> AsyncGenerator[Json]:
    """Yield the chunks of a chat completion: the first of a choice has the role, the last the finish reason.

    The reason is held back to the end, because some servers repeat it in every chunk.
    """
    stream = _ChunkConverter(form)
    async with aclosing(chunks):
        async for chunk in chunks:
            for converted in stream.feed(chunk):
                yield converted
    for converted in stream.finish():
        yield converted


@dataclass(slots=True)
class _StreamedChoice:
    """One choice of a stream."""

    parser: ToolCallParser
    call_count: int = 0
    finish_reason: str | None = None
    unknown_fields: Json = field(default_factory=dict)
    """Fields of the target beside the finish reason."""

    def deltas(self, parts: Iterable[str | Json]) -> Iterator[Json]:
        for part in parts:
            if isinstance(part, str):
                yield {"content": part}
            else:
                yield {"tool_calls": [{"index": self.call_count, **part}]}
                self.call_count += 1


class _ChunkConverter:
    """Converts the chunks of one completion."""

    def __init__(self, form: ChatResponseFormat) -> None:
        self._form = form
        # The fields that all chunks begin with.
        self._head: Json = {}
        self._choices: dict[int, _StreamedChoice] = {}
        # Chunks without choices, which come after all choices.
        self._usage: list[Json] = []

    def feed(self, chunk: Json) -> Iterator[Json]:
        if not self._head:
            head = {"id": _chat_id(chunk), "object": "chat.completion.chunk", "created": chunk.get("created")}
            self._head = head | {"model": self._form.model}
        extra = {name: value for name, value in chunk.items() if name not in {*self._head, "choices"}}
        choices = _choices(chunk)
        if not choices:
            self._usage.append(self._head | {"choices": []} | extra)
        for position, choice in enumerate(choices):
            yield from self._convert(choice, choice.get("index", position), extra)

    def _convert(self, choice: Json, index: int, extra: Json) -> Iterator[Json]:
        if index not in self._choices:
            self._choices[index] = _StreamedChoice(ToolCallParser(self._form.tool_calls))
            yield self._chunk(index, {"role": self._form.role, "content": ""}, extra)
        state = self._choices[index]
        logprobs = chat_logprobs(choice.get("logprobs"), self._form.top_logprobs)
        deltas = list(state.deltas(state.parser.feed(choice.get("text") or "")))
        if not deltas and logprobs and logprobs["content"]:
            deltas = [{"content": ""}]
        for number, delta in enumerate(deltas):
            yield self._chunk(index, delta, extra, None if number else logprobs)
        if choice.get("finish_reason"):
            state.finish_reason, state.unknown_fields = choice["finish_reason"], _unknown_fields(choice)

    def finish(self) -> Iterator[Json]:
        if not self._choices:
            raise GatewayError("The target's stream ended before it began")
        # If the usage comes last, the chunks before it have a null.
        extra = {"usage": None} if self._usage else {}
        for index, state in sorted(self._choices.items()):
            if state.finish_reason is None:
                raise GatewayError("The target's stream ended in the middle of the response")
            for delta in state.deltas(state.parser.finish()):
                yield self._chunk(index, delta, extra)
            last = self._chunk(index, {}, extra)
            reason = _finish_reason(state.finish_reason, has_calls=state.call_count > 0)
            last["choices"][0] |= {"finish_reason": reason} | state.unknown_fields
            yield last
        yield from self._usage

    def _chunk(self, index: int, delta: Json, extra: Json, logprobs: Json | None = None) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        return self._head | {"choices": [choice]} | extra


def chat_logprobs(logprobs: Any, top: int) -> Json | None:  # Any: JSON values
    """Return the log probabilities of a choice or chunk as a chat has them, with at most `top` alternatives a token."""
    if not isinstance(logprobs, dict) or not isinstance(logprobs.get("tokens"), list):
        return None
    tokens = logprobs["tokens"]
    chosen = (logprobs.get("token_logprobs") or [])[: len(tokens)]
    alternatives = (logprobs.get("top_logprobs") or [])[: len(tokens)]
    rows = zip_longest(tokens, chosen, alternatives)
    content = [_token(token, logprob) | {"top_logprobs": _best(others, top)} for token, logprob, others in rows]
    return {"content": content, "refusal": None}


def _token(token: Any, logprob: Any) -> Json:  # Any: JSON values
    text = str(token)
    return {"token": text, "logprob": _MIN_LOGPROB if logprob is None else logprob, "bytes": _bytes(text)}


def _best(alternatives: Any, top: int) -> list[Json]:  # Any: JSON values
    """Return the most probable alternatives first; a completion may list the chosen token as one more."""
    if not isinstance(alternatives, dict):
        return []
    tokens = [_token(token, logprob) for token, logprob in alternatives.items()]
    return sorted(tokens, key=lambda each: -float(each["logprob"]))[:top]


def _bytes(token: str) -> list[int] | None:
    """Return the token in UTF-8, or None if it is a part of a character that is lost."""
    if found := _BYTES.fullmatch(token):
        return list(bytes.fromhex(found[1].replace("\\x", "")))
    return None if "\ufffd" in token else list(token.encode("utf-8", "replace"))


def truncate_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return the text before the first stop sequence in it."""
    return text[: min((at for each in stop if (at := text.find(each)) >= 0), default=len(text))]


class StopSequences:
    """Finds stop sequences in text that comes in pieces; what may be the beginning of one is held back."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self.is_found = False
        """A stop sequence was found; nothing after it counts."""
        self.rest = ""
        """The text after it."""

    def feed(self, piece: str) -> str:
        """Return the text that is certainly before a stop sequence."""
        text = self._held + piece
        kept = truncate_at_stop(text, self._stop)
        self.is_found = kept != text
        if self.is_found:
            found = next(each for each in self._stop if text.startswith(each, len(kept)))
            self.rest = text[len(kept) + len(found) :]
        held = 0 if self.is_found else max((_overlap(text, each) for each in self._stop), default=0)
        self._held = text[len(text) - held :]
        return kept[: len(kept) - held]

    def finish(self) -> str:
        """Return the text that is held back."""
        return self._held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that a stop sequence begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)


def split_tool_calls(text: str, config: ToolCallsConfig | None) -> tuple[str, list[Json]]:
    """Return the text without its tool calls, and the calls in OpenAI's form; invalid calls stay text.

    A config of None finds none.
    """
    parser = ToolCallParser(config)
    parts = [*parser.feed(text), *parser.finish()]
    rest = "".join(part for part in parts if isinstance(part, str))
    calls = [part for part in parts if not isinstance(part, str)]
    # Models put line breaks around their markers.
    return rest.strip() if calls else rest, calls


class ToolCallParser:
    """Finds tool calls in text that comes in pieces; a config of None finds none."""

    def __init__(self, config: ToolCallsConfig | None) -> None:
        self._begin, self._end = ("", None) if config is None else (config.begin, config.end)
        self._markers = [self._begin] if config else []
        self._outside = StopSequences(self._markers)
        # The text of a call after its marker; None outside of a call.
        self._call: str | None = None

    def feed(self, piece: str) -> Iterator[str | Json]:
        """Yield the texts and calls that are certain."""
        while True:
            if self._call is None:
                if text := self._outside.feed(piece):
                    yield text
                if not self._outside.is_found:
                    return
                piece, self._call, self._outside = self._outside.rest, "", StopSequences(self._markers)
            self._call += piece
            if self._end is None or self._end not in self._call:
                return
            call, _, piece = self._call.partition(self._end)
            self._call = None
            yield from self._parse(call, self._end)

    def finish(self) -> Iterator[str | Json]:
        """Yield what is held back; a call may end with the text."""
        if self._call is not None:
            yield from self._parse(self._call, "")
        elif text := self._outside.finish():
            yield text

    def _parse(self, text: str, end: str) -> Iterator[str | Json]:
        try:
            decoded = json.loads(text)
        except ValueError:
            decoded = None
        calls = [_tool_call(each) for each in (decoded if isinstance(decoded, list) else [decoded])]
        if not calls or None in calls:
            yield f"{self._begin}{text}{end}"
        else:
            yield from (call for call in calls if call is not None)


def _tool_call(value: Any) -> Json | None:  # Any: JSON values
    """Return a call in OpenAI's form; None if it is not one."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    function = {"name": value["name"], "arguments": text}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
