"""A tensor as a header names it: its type, its shape, its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""
Bits of one element, by safetensors' names of types (https://huggingface.co/docs/safetensors, "Format").
"""

PLAIN = frozenset({"F16", "BF16", "F32", "F64"})
"""
The types that vLLM turns into the one the model computes in, unless the tensor belongs to a quantized layer.
"""

TYPES: Mapping[str, str] = {"bfloat16": "BF16", "float16": "F16", "half": "F16", "float32": "F32", "float": "F32"}
"""
torch's names of the types that models compute in.
"""


# Sizes are 64-bit numbers where tensors are computed with.
_MOST_ELEMENTS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint; `dtype` is a key of `BITS`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raises:
        ValueError: the shape, which a file says, is that of no tensor.
        """
        is_shape = all(type(size) is int and size >= 0 for size in self.shape)
        if not is_shape or prod(self.shape) > _MOST_ELEMENTS:
            raise ValueError(
                f"the shape of the tensor {self.name[:200]!r} must be whole numbers, of 2**63 elements in all at most"
            )

    @property
    def elements(self) -> int:
        """How many numbers it has; a packed one counts by its packs."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes in the checkpoint."""
        return bytes_of(self.elements, self.dtype)


def bytes_of(elements: int, dtype: str) -> int:
    """Bytes of so many elements."""
    return -(-elements * BITS[dtype] // 8)
