"""
A completion as a chat completion, whole or chunk by chunk.

Source: https://platform.openai.com/docs/api-reference/chat/object and .../chat/streaming.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from appliance.errors import GatewayError
from appliance.translation.logprobs import chat_logprobs
from appliance.translation.messages import Json

_OF_CHOICE = frozenset({"text", "index", "logprobs", "finish_reason"})


@dataclass(frozen=True, slots=True)
class Face:
    """
    What the client knows that the completion does not: the model's name, the role, the alternatives it asked for.
    """

    model: str
    role: str
    top_logprobs: int = 0


def chat_completion(completion: Json, face: Face) -> Json:
    """
    The whole answer; fields that only the target knows are kept.

    Raises:
        GatewayError: it is no completion.
    """
    choices = completion.get("choices")
    if not isinstance(choices, list) or not choices:
        raise GatewayError("The target's answer is no completion: it has no choices")
    made = completion | {"id": _chat_id(completion.get("id")), "object": "chat.completion", "model": face.model}
    return made | {"choices": [_choice(choice, index, face) for index, choice in enumerate(choices)]}


def _choice(choice: Json, index: int, face: Face) -> Json:
    return {
        "index": choice.get("index", index),
        "message": {"role": face.role, "content": choice.get("text") or "", "refusal": None},
        "logprobs": chat_logprobs(choice.get("logprobs"), face.top_logprobs),
        "finish_reason": choice.get("finish_reason") or "stop",
        **_extras(choice),
    }


def _extras(choice: Json) -> Json:
    return {name: value for name, value in choice.items() if name not in _OF_CHOICE}


def _chat_id(completion_id: Any) -> str:  # Any: JSON values
    rest = str(completion_id).removeprefix("cmpl-") if completion_id else uuid.uuid4().hex
    return f"chatcmpl-{rest}"


async def chat_chunks(chunks: AsyncGenerator[Json], face: Face) -> AsyncGenerator[Json]:
    """
    The chunks of a chat completion: the role in the first one of each choice, the reason it ended in the last.

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
class _Stream:
    """
    One answer under way: `reasons` has the choices that began, each with why it ended as far as that is known.
    """

    face: Face
    frame: Json = field(default_factory=dict)
    """What every chunk begins with."""
    reasons: dict[int, str | None] = field(default_factory=dict)
    last: dict[int, Json] = field(default_factory=dict)
    """What the target said about the end of a choice besides its reason."""
    usage: list[Json] = field(default_factory=list)
    """Chunks without choices come after all choices."""

    def take(self, chunk: Json) -> Iterator[Json]:
        if not self.frame:
            head = {"id": _chat_id(chunk.get("id")), "object": "chat.completion.chunk", "created": chunk.get("created")}
            self.frame = head | {"model": self.face.model}
        extras = {name: value for name, value in chunk.items() if name not in {*self.frame, "choices"}}
        choices = chunk.get("choices")
        if not choices:
            self.usage.append(self.frame | {"choices": []} | extras)
        for position, choice in enumerate(choices or ()):
            yield from self._pieces(choice, choice.get("index", position), extras)

    def _pieces(self, choice: Json, index: int, extras: Json) -> Iterator[Json]:
        if index not in self.reasons:
            self.reasons[index] = None
            yield self._chunk(index, {"role": self.face.role, "content": ""}, extras)
        logprobs = chat_logprobs(choice.get("logprobs"), self.face.top_logprobs)
        text = choice.get("text") or ""
        if text or (logprobs and logprobs["content"]):
            yield self._chunk(index, {"content": text}, extras, logprobs)
        if choice.get("finish_reason"):
            self.reasons[index] = choice["finish_reason"]
            self.last[index] = _extras(choice)

    def end(self) -> Iterator[Json]:
        if not self.reasons:
            raise GatewayError("The target's stream ended before it began")
        if None in self.reasons.values():
            raise GatewayError("The target's stream ended in the middle of the answer")
        # Where a usage of null tells that there is one to come, it stands in these chunks too.
        filler = {"usage": None} if self.usage else {}
        for index, reason in sorted(self.reasons.items()):
            made = self._chunk(index, {}, filler)
            made["choices"][0] |= {"finish_reason": reason} | self.last[index]
            yield made
        yield from self.usage

    def _chunk(self, index: int, delta: Json, extras: Json, logprobs: Json | None = None) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        return self.frame | {"choices": [choice]} | extras
