"""One tensor of a checkpoint: type, shape and size."""

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
"""Bits of one element, by safetensors' dtype (https://huggingface.co/docs/safetensors, "Format")."""

FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
"""Types that vLLM converts to the model's dtype, unless the tensor belongs to a quantized layer."""

TORCH_DTYPES: Mapping[str, str] = {
    "bfloat16": "BF16",
    "float16": "F16",
    "half": "F16",
    "float32": "F32",
    "float": "F32",
}
"""Dtypes of models, by their name in torch."""

# torch keeps sizes as signed 64-bit numbers.
_MAX_ELEMENTS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint; `dtype` is a key of `BITS`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the shape, which comes from a file.

        Raises:
            ValueError: it is not a valid shape.
        """
        is_shape = all(type(size) is int and size >= 0 for size in self.shape)
        if not is_shape or prod(self.shape) > _MAX_ELEMENTS:
            raise ValueError(
                f"the shape of the tensor {self.name[:200]!r} must be whole numbers, of 2**63 elements in all at most"
            )

    @property
    def elements(self) -> int:
        """Number of elements; packed weights count as one element per pack."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes in the checkpoint."""
        return bytes_of(self.elements, self.dtype)


def bytes_of(elements: int, dtype: str) -> int:
    """Return the bytes of a number of elements."""
    return -(-elements * BITS[dtype] // 8)
