"""The chunks of a completion as those of a chat completion.

Source: https://platform.openai.com/docs/api-reference/chat/streaming
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field

from appliance.adapters.chat_response import ChatResponseBuilder, chat_id, choices_of, extras_of, reason_of
from appliance.adapters.logprobs import chat_logprobs
from appliance.adapters.messages import Json
from appliance.adapters.tool_calls import ToolCalls
from appliance.core.errors import GatewayError


async def chat_chunks(chunks: AsyncGenerator[Json], face: ChatResponseBuilder) -> AsyncGenerator[Json]:
    """The chunks of a chat completion: the role in the first one of each choice, the reason it ended in the last.

    The reason is held back to the end, because some servers give one with every chunk.

    Raises:
        GatewayError: the stream ends in the middle of a choice.
    """
    stream = _Stream(face)
    async with aclosing(chunks):
        async for chunk in chunks:
            for made in stream.take(chunk):
                yield made
    for made in stream.end():
        yield made


@dataclass(slots=True)
class _Choice:
    """One choice under way; `calls` is None where no tool may be called."""

    calls: ToolCalls | None
    called: int = 0
    reason: str | None = None
    extras: Json = field(default_factory=dict)
    """What the target said about its end besides the reason."""

    def deltas(self, text: str) -> Iterator[Json]:
        """What a piece of text adds to the message."""
        if self.calls is None:
            yield from [{"content": text}] if text else []
        else:
            yield from map(self._delta, self.calls.take(text))

    def rest(self) -> Iterator[Json]:
        """What was not sure before the end."""
        yield from map(self._delta, self.calls.rest() if self.calls is not None else ())

    def _delta(self, part: str | Json) -> Json:
        if isinstance(part, str):
            return {"content": part}
        self.called += 1
        return {"tool_calls": [{"index": self.called - 1, **part}]}


@dataclass(slots=True)
class _Stream:
    """One answer under way."""

    face: ChatResponseBuilder
    frame: Json = field(default_factory=dict)
    """What every chunk begins with."""
    choices: dict[int, _Choice] = field(default_factory=dict)
    usage: list[Json] = field(default_factory=list)
    """Chunks without choices come after all choices."""

    def take(self, chunk: Json) -> Iterator[Json]:
        if not self.frame:
            head = {"id": chat_id(chunk.get("id")), "object": "chat.completion.chunk", "created": chunk.get("created")}
            self.frame = head | {"model": self.face.model}
        extras = {name: value for name, value in chunk.items() if name not in {*self.frame, "choices"}}
        choices = choices_of(chunk)
        if not choices:
            self.usage.append(self.frame | {"choices": []} | extras)
        for position, choice in enumerate(choices):
            yield from self._pieces(choice, choice.get("index", position), extras)

    def _pieces(self, choice: Json, index: int, extras: Json) -> Iterator[Json]:
        if index not in self.choices:
            self.choices[index] = _Choice(ToolCalls(self.face.marks) if self.face.marks else None)
            yield self._chunk(index, {"role": self.face.role, "content": ""}, extras)
        mine = self.choices[index]
        logprobs = chat_logprobs(choice.get("logprobs"), self.face.top_logprobs)
        deltas = list(mine.deltas(choice.get("text") or ""))
        if not deltas and logprobs and logprobs["content"]:
            deltas = [{"content": ""}]
        for number, delta in enumerate(deltas):
            yield self._chunk(index, delta, extras, None if number else logprobs)
        if choice.get("finish_reason"):
            mine.reason, mine.extras = choice["finish_reason"], extras_of(choice)

    def end(self) -> Iterator[Json]:
        if not self.choices:
            raise GatewayError("The target's stream ended before it began")
        # Where a usage of null tells that there is one to come, it stands in these chunks too.
        filler = {"usage": None} if self.usage else {}
        for index, mine in sorted(self.choices.items()):
            if mine.reason is None:
                raise GatewayError("The target's stream ended in the middle of the answer")
            for delta in mine.rest():
                yield self._chunk(index, delta, filler)
            made = self._chunk(index, {}, filler)
            reason = reason_of(mine.reason, has_called=mine.called > 0)
            made["choices"][0] |= {"finish_reason": reason} | mine.extras
            yield made
        yield from self.usage

    def _chunk(self, index: int, delta: Json, extras: Json, logprobs: Json | None = None) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        return self.frame | {"choices": [choice]} | extras
