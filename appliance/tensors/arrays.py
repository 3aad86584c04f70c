"""Tensors from and to numpy's arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from appliance.tensors.tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

# numpy's dtypes, little-endian, as the protocol's bytes are.
_DTYPES: Mapping[str, str] = {
    "BOOL": "?",
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}

# numpy's kinds of objects, bytes and texts.
_TEXT_KINDS = frozenset("OSU")


def to_array(tensor: Tensor) -> Array:
    """Return the elements in the tensor's shape, read-only if the array shares their bytes.

    BYTES become an array of objects, each of them bytes; BF16, which numpy lacks, becomes float32.
    """
    import numpy as np

    if tensor.datatype in _DTYPES:
        return np.frombuffer(tensor.raw, _DTYPES[tensor.datatype]).reshape(tensor.shape)
    values = tensor.values()
    flat: Array = np.empty(len(values), np.float32 if tensor.datatype == "BF16" else np.object_)
    flat[:] = values
    return flat.reshape(tensor.shape)


def to_tensor(name: str, array: Array, datatype: str | None = None) -> Tensor:
    """Return an array as a tensor; a `datatype` of None is the array's own.

    Raises:
        TypeError: the protocol has no datatype for such an array.
        RequestError: its elements do not fit the datatype.
    """
    import numpy as np

    found = datatype or datatype_of(array)
    if array.dtype.kind in _TEXT_KINDS:
        texts = [bytes(each) if isinstance(each, bytes) else str(each) for each in array.ravel()]
        return Tensor.of_values(name, found or "BYTES", array.shape, texts)
    if found is None:
        raise TypeError(f"{name}: there is no datatype for an array of {array.dtype}; give it another with astype")
    if found not in _DTYPES:
        return Tensor.of_values(name, found, array.shape, array.ravel().tolist())
    return Tensor.of_raw(name, found, array.shape, np.ascontiguousarray(array, _DTYPES[found]).tobytes())


def datatype_of(array: Array) -> str | None:
    """Return the datatype for an array's elements; None if the protocol has none."""
    if array.dtype.kind in _TEXT_KINDS:
        return "BYTES"
    native = array.dtype.newbyteorder("<")
    return next((name for name, dtype in _DTYPES.items() if native == dtype), None)


def dtype_of(datatype: str) -> str:
    """Return numpy's dtype for elements of a datatype; objects for BYTES, and for BF16, which it lacks."""
    return _DTYPES.get(datatype, "O")
