"""What every answer begins with: filled in where a user left it out, and the same in all chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from appliance.core.model import Operation
from appliance.python_api.serialization import Json, plain

# The prefix of its id, the kind of the whole, the kind of a chunk; rerank's answer says no kind.
_KINDS: Mapping[Operation, tuple[str, str, str]] = {
    Operation.CHAT_COMPLETION: ("chatcmpl", "chat.completion", "chat.completion.chunk"),
    Operation.COMPLETION: ("cmpl", "text_completion", "text_completion"),
    Operation.EMBEDDING: ("embd", "list", "list"),
    Operation.RERANK: ("rerank", "", ""),
}


@dataclass(frozen=True, slots=True)
class ResponseEnvelope:
    """The fields of one answer that say which it is."""

    whole: Json
    chunk: Json

    @classmethod
    def of(cls, operation: Operation, model: str) -> ResponseEnvelope:
        """A new answer's, under the name the client used for the model."""
        prefix, whole, chunk = _KINDS[operation]
        head: Json = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        return cls(head | ({"object": whole} if whole else {}), head | ({"object": chunk} if chunk else {}))

    def around_whole(self, returned: Any) -> Json:  # Any: whatever a user returned
        """A whole answer with what its author left out."""
        return _framed(self.whole, returned)

    def around_chunk(self, yielded: Any) -> Json:  # Any: whatever a user yielded
        """A chunk with what its author left out; an error stands alone."""
        return _framed(self.chunk, yielded)


def _framed(frame: Json, given: Any) -> Json:  # Any: as above
    made = plain(given)
    if "error" in made:
        return made
    # What an object has by its own default differs from chunk to chunk.
    said = given.model_fields_set if isinstance(given, BaseModel) else made.keys()
    kept = {name: value for name, value in made.items() if name not in frame or (name in said and value is not None)}
    return frame | kept
