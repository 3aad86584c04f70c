"""Datatypes of tensors and the encoding of their values: little-endian, row-major, without padding.

Source: https://github.com/kserve/open-inference-protocol, "Tensor Data Types", and for the bytes the binary tensor
data extension of Triton (https://github.com/triton-inference-server/server, protocol/extension_binary_data.md).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from appliance.core.errors import RequestError
from appliance.core.suggestions import did_you_mean

Value = bool | int | float | bytes
"""One element of a tensor; elements of BYTES are bytes."""

InputValue = Value | str
"""What an element can be made of; a string is encoded as UTF-8."""

_JSON_TYPES: Mapping[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number with a fraction",
    str: "a text",
    bytes: "a text",
    list: "a list",
    dict: "an object",
    type(None): "null",
}

_FLOATS = frozenset({int, float})
_INTEGERS = frozenset({int})


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
    found = DATATYPES.get(name)
    if found is None:
        hint = did_you_mean(name.upper(), DATATYPES) or f"it must be one of: {', '.join(DATATYPES)}"
        raise RequestError(f"There is no datatype {name[:40]!r}; {hint}", param="datatype")
    return found


def _number(name: str, code: str, kinds: frozenset[type]) -> Datatype:
    size = struct.calcsize("<" + code)

    def pack(values: Sequence[InputValue]) -> bytes:
        _require(values, kinds, name)
        try:
            return struct.pack(f"<{len(values)}{code}", *values)
        except (struct.error, OverflowError) as error:
            raise ValueError(f"a value is outside of what {name} holds") from error

    def unpack(raw: bytes) -> list[Value]:
        return list(struct.unpack(f"<{len(raw) // size}{code}", raw))

    return Datatype(name, size, pack, unpack)


def _require(values: Sequence[InputValue], kinds: frozenset[type], name: str) -> None:
    wrong = set(map(type, values)) - kinds
    if wrong:
        raise ValueError(f"{name} has no place for {min(map(_json_type, wrong))}")


def _json_type(kind: type) -> str:
    return _JSON_TYPES.get(kind, kind.__name__)


def _pack_bfloat16(values: Sequence[InputValue]) -> bytes:
    """Encode the upper half of each float32, rounded to nearest, ties to even."""
    singles = struct.unpack(f"<{len(values)}I", DATATYPES["FP32"].pack(values))
    return struct.pack(f"<{len(singles)}H", *(_upper_half(each) for each in singles))


def _upper_half(single: int) -> int:
    if single & 0x7FFFFFFF > 0x7F800000:
        # NaN stays NaN, whichever bits are cut off.
        return single >> 16 | 0x40
    return (single + 0x7FFF + (single >> 16 & 1)) >> 16


def _unpack_bfloat16(raw: bytes) -> list[Value]:
    halves = struct.unpack(f"<{len(raw) // 2}H", raw)
    return list(struct.unpack(f"<{len(halves)}f", struct.pack(f"<{len(halves)}I", *(each << 16 for each in halves))))


def _pack_bytes(values: Sequence[InputValue]) -> bytes:
    parts: list[bytes] = []
    for value in values:
        if isinstance(value, str):
            value = value.encode()
        if not isinstance(value, bytes):
            raise ValueError(f"BYTES has no place for {_json_type(type(value))}")
        parts += (struct.pack("<I", len(value)), value)
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
        _number("BOOL", "?", frozenset({bool})),
        *(_number(f"UINT{bits}", code, _INTEGERS) for bits, code in ((8, "B"), (16, "H"), (32, "I"), (64, "Q"))),
        *(_number(f"INT{bits}", code, _INTEGERS) for bits, code in ((8, "b"), (16, "h"), (32, "i"), (64, "q"))),
        *(_number(f"FP{bits}", code, _FLOATS) for bits, code in ((16, "e"), (32, "f"), (64, "d"))),
        Datatype("BF16", 2, _pack_bfloat16, _unpack_bfloat16),
        Datatype("BYTES", None, _pack_bytes, _unpack_bytes),
    )
}
"""Every datatype, by name."""
