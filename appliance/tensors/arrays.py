"""Tensors from and to numpy's arrays; numpy is imported by the functions that need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

# numpy's kinds of objects, bytes and texts, and of points in time, which become texts.
_TEXT_KINDS = frozenset("OSUM")


def is_array(value: object) -> bool:
    """Return whether a value is an array of numpy's, without importing numpy."""
    return hasattr(value, "__array__") and hasattr(value, "dtype")


def to_array(tensor: Tensor) -> Array:
    """Return the elements in the tensor's shape, read-only if the array shares their bytes.

    BYTES become an array of objects, each of them bytes; BF16, which numpy lacks, becomes float32.
    """
    import numpy as np

    if tensor.datatype in _DTYPES:
        return np.frombuffer(tensor.raw, _DTYPES[tensor.datatype]).reshape(tensor.shape)
    if tensor.datatype == "BF16":
        return np.array(tensor.values(), np.float32).reshape(tensor.shape)
    return array_of_objects(tensor.values(), tensor.shape)


def array_of_objects(values: Sequence[object], shape: Sequence[int]) -> Array:
    """Return values as an array of objects.

    Raises:
        ValueError: their number does not fit the shape.
    """
    import numpy as np

    array: Array = np.empty(len(values), np.object_)
    array[:] = values
    return array.reshape(shape)


def to_tensor(name: str, array: Array, datatype: str | None = None, shape: Sequence[int] | None = None) -> Tensor:
    """Return an array as a tensor; a `datatype` or a `shape` of None is the array's own.

    Raises:
        TypeError: the protocol has no datatype for such an array.
        RequestError: its elements do not fit the datatype or the shape.
        ValueError: the datatype is of another kind of numbers.
    """
    import numpy as np

    datatype, shape = datatype or require_datatype(name, array), array.shape if shape is None else shape
    if array.dtype.kind in _TEXT_KINDS:
        texts = [bytes(each) if isinstance(each, bytes) else str(each) for each in array.ravel()]
        return Tensor.of_values(name, datatype, shape, texts)
    if datatype not in _DTYPES:
        return Tensor.of_values(name, datatype, shape, array.ravel().tolist())
    if not np.can_cast(array.dtype, _DTYPES[datatype], casting="same_kind"):
        raise ValueError(f"{name}: an array of {array.dtype} does not fit {datatype}; convert it with astype")
    return Tensor.of_raw(name, datatype, shape, np.ascontiguousarray(array, _DTYPES[datatype]).tobytes())


def datatype_of(array: Array) -> str | None:
    """Return the datatype for an array's elements; None if the protocol has none."""
    if array.dtype.kind in _TEXT_KINDS:
        return "BYTES"
    native = array.dtype.newbyteorder("<")
    return next((name for name, dtype in _DTYPES.items() if native == dtype), None)


def dtype_of(datatype: str) -> str:
    """Return numpy's dtype for elements of a datatype; objects for BYTES, and for BF16, which it lacks."""
    return _DTYPES.get(datatype, "O")


def require_datatype(name: str, array: Array) -> str:
    """Return the datatype for an array's elements; `name` is the tensor's, for the message.

    Raises:
        TypeError: the protocol has none.
    """
    datatype = datatype_of(array)
    if datatype is None:
        raise TypeError(f"{name}: there is no datatype for an array of {array.dtype}; give it another with astype")
    return datatype
