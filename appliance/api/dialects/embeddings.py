"""Embeddings as the dialects write them: numbers, bytes, bits, and prompts in front of texts."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from math import hypot
from typing import Any

from appliance.core.errors import GatewayError, RequestError
from appliance.core.openai_types import Embeddings
from appliance.models.model_status import ModelStatus

Vector = Sequence[float]

_MAX_INT8 = 127

# To signed bytes from unsigned ones.
_SHIFT = 128

# As far from 1 as rounding leaves the length of a normalized vector.
_MAX_ERROR = 1e-4


def vectors(embeddings: Embeddings, count: int) -> Sequence[Vector]:
    """Return the vectors of a model's embeddings in the order of its inputs, of which there are `count`."""
    if len(embeddings.data) != count:
        raise GatewayError(f"The model gave {len(embeddings.data)} embeddings for {count} inputs")
    return [_vector(each.embedding) for each in sorted(embeddings.data, key=lambda each: each.index)]


def _vector(embedding: str | list[float]) -> Vector:
    if isinstance(embedding, list):
        return embedding
    try:
        data = base64.b64decode(embedding, validate=True)
        return struct.unpack(f"<{len(data) // 4}f", data)
    except (ValueError, struct.error) as error:
        raise GatewayError("The model's embedding is neither numbers nor base64 of float32") from error


def normalized(vector: Vector) -> Vector:
    """Return the vector with length 1; one that has it already, or has none, is unchanged."""
    length = hypot(*vector)
    if length == 0 or abs(length - 1) < _MAX_ERROR:
        return vector
    return [number / length for number in vector]


def int8(vector: Vector) -> list[int]:
    """Return the vector in steps of its largest number / 127, so that cosines remain; all vectors fill the range."""
    largest = max(map(abs, vector), default=0) or 1
    return [round(number / largest * _MAX_INT8) for number in vector]


def uint8(vector: Vector) -> list[int]:
    """Return `int8`, moved to 0 to 255."""
    return [number + _SHIFT for number in int8(vector)]


def ubinary(vector: Vector) -> list[int]:
    """Return a bit for each number, 1 if it is positive, in bytes from the most significant bit.

    Source: https://docs.cohere.com/docs/embeddings#compression-levels
    """
    if len(vector) % 8:
        raise RequestError(
            f"Embeddings of {len(vector)} numbers cannot be packed into bytes; embedding_types binary and ubinary need "
            "a multiple of 8",
            param="embedding_types",
        )
    bits = "".join("1" if number > 0 else "0" for number in vector)
    return list(int(bits, 2).to_bytes(len(bits) // 8, "big")) if bits else []


def binary(vector: Vector) -> list[int]:
    """Return `ubinary` as signed bytes."""
    return [byte - _SHIFT for byte in ubinary(vector)]


def prompts(status: ModelStatus) -> dict[str, Any]:  # Any: texts
    """Return the prompts that a model's files have, by name; see `EncoderModel.describe`."""
    return dict(status.model.describe().get("prompts", {}))
