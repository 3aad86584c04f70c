"""Results of users' methods as JSON objects, completed with the fields that identify a response."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic import BaseModel

from appliance.core.errors import ApplianceError
from appliance.core.model import Operation
from appliance.core.openai_types import Json, encode_vector
from appliance.python_api.user_code import describe_exception


class InvalidResultError(ApplianceError):
    """A method of a model written in Python returned something that is not a response."""


def to_json(result: Any) -> Json:  # Any: a user's own
    """Return the fields of a mapping, a dataclass, or a model of pydantic's or msgspec's; arrays become lists."""
    try:
        fields = result.model_dump() if isinstance(result, BaseModel) else result
        converted = msgspec.to_builtins(fields, enc_hook=_convert, str_keys=True)
    except Exception as error:
        # Methods of the user's objects run in it, which raise anything.
        raise InvalidResultError(
            f"the model returned {describe_type(result)}, which is not JSON: {describe_exception(error)}"
        ) from error
    if not isinstance(converted, dict):
        raise InvalidResultError(
            f"the model returned {describe_type(result)}; must be an object with the fields of a response"
        )
    return converted


def _convert(value: Any) -> Any:  # Any: what msgspec does not know
    if isinstance(value, BaseModel):
        return value.model_dump()
    # Arrays and numbers of numpy's and torch's.
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"it contains {describe_type(value)}")


def describe_type(value: object) -> str:
    """Return the type of a value for messages."""
    return f"a {type(value).__name__}" if value is not None else "nothing"


def with_base64(embedding: Json) -> Json:
    """Return the response to an embedding request with its vectors as base64."""
    data = embedding.get("data", [])
    if not isinstance(data, list) or not all(isinstance(each, dict) for each in data):
        raise InvalidResultError("the model returned an embedding whose data is not a list of objects")
    return {**embedding, "data": [{**each, "embedding": _base64(each.get("embedding"))} for each in data]}


def _base64(vector: Any) -> Any:  # Any: numbers, or already base64
    if not isinstance(vector, list):
        return vector
    try:
        return encode_vector(vector)
    except ValueError as error:
        raise InvalidResultError(f"the model returned a vector that is not a list of numbers: {error}") from error


# The prefix of the id, the `object` of a response and of a chunk; a rerank response has no `object`.
_KINDS: Mapping[Operation, tuple[str, str, str]] = {
    Operation.CHAT_COMPLETION: ("chatcmpl", "chat.completion", "chat.completion.chunk"),
    Operation.COMPLETION: ("cmpl", "text_completion", "text_completion"),
    Operation.EMBEDDING: ("embd", "list", "list"),
    Operation.RERANK: ("rerank", "", ""),
}


@dataclass(frozen=True, slots=True)
class ResponseEnvelope:
    """The fields that identify one response, the same in all chunks of a stream."""

    response: Json
    chunk: Json

    @classmethod
    def new(cls, operation: Operation, model: str) -> ResponseEnvelope:
        """Return the envelope of a new response; `model` is the name that the client used."""
        prefix, response, chunk = _KINDS[operation]
        head: Json = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        return cls(head | ({"object": response} if response else {}), head | ({"object": chunk} if chunk else {}))

    def complete_response(self, result: Any) -> Json:  # Any: a user's own
        """Return a response with the fields that its author left out; an error is returned as it is."""
        return _complete(self.response, result)

    def complete_chunk(self, item: Any) -> Json:  # Any: a user's own
        """Return a chunk with the fields that its author left out; an error is returned as it is."""
        return _complete(self.chunk, item)


def _complete(envelope: Json, result: Any) -> Json:  # Any: a user's own
    fields = to_json(result)
    if "error" in fields:
        return fields
    # Defaults of an object, such as its id, differ from chunk to chunk.
    explicit = result.model_fields_set if isinstance(result, BaseModel) else fields.keys()
    kept = {k: v for k, v in fields.items() if k not in envelope or (k in explicit and v is not None)}
    return envelope | kept
