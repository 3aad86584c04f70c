"""Tool calls out of a model's text, whole or piece by piece.

Source: https://platform.openai.com/docs/api-reference/chat/object (`message.tool_calls`); models write a call as JSON
between marks of their own, https://huggingface.co/docs/transformers/chat_extras.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

from appliance.adapters.messages import Json
from appliance.adapters.stop_sequences import StopSequences
from appliance.config.adapters import ToolCallsConfig


def split(text: str, marks: ToolCallsConfig) -> tuple[str, list[Json]]:
    """The text without its calls, and the calls in OpenAI's shape; what is no call stays text."""
    reader = ToolCalls(marks)
    parts = [*reader.take(text), *reader.rest()]
    said = "".join(part for part in parts if isinstance(part, str))
    calls = [part for part in parts if not isinstance(part, str)]
    # Models put line breaks around their marks, which mean nothing any more.
    return said.strip() if calls else said, calls


class ToolCalls:
    """The same for text that comes in pieces: texts and calls as soon as they are sure."""

    def __init__(self, marks: ToolCallsConfig) -> None:
        self._marks = marks
        self._outside = StopSequences([marks.begin])
        self._call: str | None = None
        """What has come of a call since its mark."""
        self.has_called = False

    def take(self, piece: str) -> Iterator[str | Json]:
        """What can be told for sure after another piece."""
        while True:
            if self._call is None:
                if text := self._outside.take(piece):
                    yield text
                if not self._outside.has_met:
                    return
                piece, self._call, self._outside = self._outside.after, "", StopSequences([self._marks.begin])
            self._call += piece
            if self._marks.end is None or self._marks.end not in self._call:
                return
            written, _, piece = self._call.partition(self._marks.end)
            self._call = None
            yield from self._calls(written, self._marks.end)

    def rest(self) -> Iterator[str | Json]:
        """What is left at the end; a call may end there too."""
        if self._call is not None:
            yield from self._calls(self._call, "")
        elif text := self._outside.rest():
            yield text

    def _calls(self, written: str, end: str) -> Iterator[str | Json]:
        try:
            said = json.loads(written)
        except ValueError:
            said = None
        calls = [_call(each) for each in (said if isinstance(said, list) else [said])]
        if not calls or None in calls:
            yield f"{self._marks.begin}{written}{end}"
            return
        self.has_called = True
        yield from (call for call in calls if call is not None)


def _call(said: Any) -> Json | None:  # Any: JSON values
    """One call in OpenAI's shape; None where it is none."""
    if not isinstance(said, dict) or not isinstance(said.get("name"), str):
        return None
    arguments = said.get("arguments", said.get("parameters", {}))
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    function = {"name": said["name"], "arguments": text}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
