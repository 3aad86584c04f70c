"""Whatever a user returned, as plain JSON values."""

from __future__ import annotations

import base64
import struct
from typing import Any

import msgspec
from pydantic import BaseModel

from appliance.core.errors import ApplianceError
from appliance.python_api.user_code import reason_of

Json = dict[str, Any]  # Any: JSON values


class ModelFaultError(ApplianceError):
    """A model written in Python gave what is no answer."""


def plain(returned: Any) -> Json:  # Any: whatever a user returned
    """The fields of an object: a mapping, a dataclass, or a model of pydantic's or msgspec's; arrays become lists.

    Raises:
        ModelFaultError: it has none.
    """
    try:
        fields = returned.model_dump() if isinstance(returned, BaseModel) else returned
        made = msgspec.to_builtins(fields, enc_hook=_hook, str_keys=True)
    except Exception as error:
        # Methods of the user's objects run in it, which raise anything.
        raise ModelFaultError(
            f"the model returned {kind_of(returned)}, which is not JSON: {reason_of(error)}"
        ) from error
    if not isinstance(made, dict):
        raise ModelFaultError(f"the model returned {kind_of(returned)}; must be an object with the fields of an answer")
    return made


def with_base64(embedding: Json) -> Json:
    """The answer to an embedding request with its vectors as base64 of little-endian float32."""
    data = [{**each, "embedding": _base64(each.get("embedding"))} for each in _data(embedding)]
    return {**embedding, "data": data}


def _data(embedding: Json) -> list[Json]:
    data = embedding.get("data", [])
    if not isinstance(data, list) or not all(isinstance(each, dict) for each in data):
        raise ModelFaultError("the model returned an embedding whose data is no list of objects")
    return data


def _base64(vector: Any) -> Any:  # Any: numbers, or already base64
    if not isinstance(vector, list):
        return vector
    try:
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    except struct.error as error:
        raise ModelFaultError(f"the model returned a vector that is not a list of numbers: {error}") from error


def _hook(value: Any) -> Any:  # Any: what msgspec does not know
    if isinstance(value, BaseModel):
        return value.model_dump()
    # Arrays and numbers of numpy's and torch's.
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"it holds {kind_of(value)}")


def kind_of(value: Any) -> str:  # Any: anything
    """A value as messages name it, by its type."""
    return f"a {type(value).__name__}" if value is not None else "nothing"
