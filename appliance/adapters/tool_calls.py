"""Stop sequences and tool calls in a model's text, whole or piece by piece.

Source: https://platform.openai.com/docs/api-reference/chat/object (`message.tool_calls`); models write a call as JSON
between markers of their own, https://huggingface.co/docs/transformers/chat_extras.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from appliance.config.adapters import ToolCallsConfig
from appliance.core.openai_types import Json


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
