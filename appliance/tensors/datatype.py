"""Datatypes of tensors and the encoding of their values: little-endian, row-major, without padding.

Source: https://github.com/kserve/open-inference-protocol, "Tensor Data Types", and for the bytes the binary tensor
data extension of Triton (https://github.com/triton-inference-server/server, protocol/extension_binary_data.md).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from types import NoneType

from appliance.core.errors import RequestError
from appliance.core.suggestions import did_you_mean

Value = bool | int | float | bytes
"""One element of a tensor; elements of BYTES are bytes."""

InputValue = Value | str | None
"""What an element can be made of; a string is encoded as UTF-8, and None is NaN, for which JSON has no number."""

JSON_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("array", "list"), "a list"),
    "bool": "true or false",
    "float": "a number",
    "int": "an integer",
    **dict.fromkeys(("null", "NoneType"), "null"),
    **dict.fromkeys(("object", "dict"), "an object"),
    **dict.fromkeys(("str", "bytes"), "a text"),
}
"""JSON words for types of Python and of msgspec's messages."""


@dataclass(frozen=True, slots=True)
class Datatype:
    """`size` is the bytes of one element; None if every element has its own length."""

    name: str
    size: int | None
    pack: Callable[[Sequence[InputValue]], bytes]
    """Encode values; raises ValueError if a value is not of this datatype."""
    unpack: Callable[[bytes], list[Value]]
    """Decode values; raises ValueError if the bytes end within a value."""


def datatype(name: str) -> Datatype:
    """Return the datatype of this name.

    Raises:
        RequestError: there is no such datatype.
    """
    if name not in DATATYPES:
        hint = did_you_mean(name.upper(), DATATYPES) or f"it must be one of: {', '.join(DATATYPES)}"
        raise RequestError(f"There is no datatype {name[:40]!r}; {hint}", param="datatype")
    return DATATYPES[name]


def _number(name: str, code: str, *types: type) -> Datatype:
    size = struct.calcsize("<" + code)

    def pack(values: Sequence[InputValue]) -> bytes:
        found = set(map(type, values))
        if wrong := found - set(types):
            raise ValueError(f"{name} has no place for {min(map(_json_type, wrong))}")
        if NoneType in found:
            values = [nan if value is None else value for value in values]
        try:
            return struct.pack(f"<{len(values)}{code}", *values)
        except (struct.error, OverflowError) as error:
            raise ValueError(f"a value is outside of what {name} holds") from error

    return Datatype(name, size, pack, lambda raw: list(struct.unpack(f"<{len(raw) // size}{code}", raw)))


def _json_type(type_: type) -> str:
    return "a number with a fraction" if type_ is float else JSON_TYPES.get(type_.__name__, type_.__name__)


def _pack_bfloat16(values: Sequence[InputValue]) -> bytes:
    """Encode the upper half of each float32, rounded to nearest, ties to even."""
    singles = struct.unpack(f"<{len(values)}I", DATATYPES["FP32"].pack(values))
    return struct.pack(f"<{len(singles)}H", *map(_upper_half, singles))


def _upper_half(single: int) -> int:
    if single & 0x7FFFFFFF > 0x7F800000:
        # NaN stays NaN, whichever bits are cut off.
        return single >> 16 | 0x40
    return (single + 0x7FFF + (single >> 16 & 1)) >> 16


def _unpack_bfloat16(raw: bytes) -> list[Value]:
    halves = struct.unpack(f"<{len(raw) // 2}H", raw)
    return DATATYPES["FP32"].unpack(struct.pack(f"<{len(halves)}I", *(half << 16 for half in halves)))


def _pack_bytes(values: Sequence[InputValue]) -> bytes:
    parts: list[bytes] = []
    for value in values:
        encoded = value.encode() if isinstance(value, str) else value
        if not isinstance(encoded, bytes):
            raise ValueError(f"BYTES has no place for {_json_type(type(value))}")
        parts += (struct.pack("<I", len(encoded)), encoded)
    return b"".join(parts)


def _unpack_bytes(raw: bytes) -> list[Value]:
    values: list[Value] = []
    offset, end = 0, len(raw)
    while offset < end:
        if offset + 4 > end:
            raise ValueError("the length of an element is cut off")
        (length,) = struct.unpack_from("<I", raw, offset)
        offset += 4
        if offset + length > end:
            raise ValueError(f"an element of {length} bytes reaches beyond the end")
        values.append(raw[offset : offset + length])
        offset += length
    return values


DATATYPES: Mapping[str, Datatype] = {
    each.name: each
    for each in (
        _number("BOOL", "?", bool),
        *(_number(f"UINT{bits}", code, int) for bits, code in ((8, "B"), (16, "H"), (32, "I"), (64, "Q"))),
        *(_number(f"INT{bits}", code, int) for bits, code in ((8, "b"), (16, "h"), (32, "i"), (64, "q"))),
        *(_number(f"FP{bits}", code, int, float, NoneType) for bits, code in ((16, "e"), (32, "f"), (64, "d"))),
        Datatype("BF16", 2, _pack_bfloat16, _unpack_bfloat16),
        Datatype("BYTES", None, _pack_bytes, _unpack_bytes),
    )
}
"""Every datatype, by name."""
