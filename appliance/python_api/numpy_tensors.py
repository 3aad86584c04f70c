"""Tensors as arrays of numpy's, and back; numpy is imported by whoever has arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from appliance.tensors import Tensor

if TYPE_CHECKING:
    import numpy as np

# Little-endian, as the protocol's bytes are.
_DTYPES: Mapping[str, str] = {
    "BOOL": "?",
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}

# numpy's kinds of texts, bytes and objects.
_TEXTS = frozenset("OSU")


def as_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The elements in the tensor's shape, read-only where they share its bytes.

    BYTES become an array of objects, each of them bytes; BF16, which numpy lacks, becomes float32.
    """
    import numpy as np

    if tensor.datatype in _DTYPES:
        return np.frombuffer(tensor.raw, _DTYPES[tensor.datatype]).reshape(tensor.shape)
    kind = np.float32 if tensor.datatype == "BF16" else np.object_
    flat: np.ndarray[Any, Any] = np.empty(len(tensor.values()), kind)
    flat[:] = tensor.values()
    return flat.reshape(tensor.shape)


def of_array(name: str, array: np.ndarray[Any, Any], datatype: str | None = None) -> Tensor:
    """An array as a tensor; a `datatype` of None is the one that the array's own corresponds to.

    Raises:
        CallError: the protocol has no such datatype, or its elements are none of the datatype's.
        TypeError: there is no datatype for such an array.
    """
    import numpy as np

    if array.dtype.kind in _TEXTS:
        return Tensor.of_values(name, datatype or "BYTES", array.shape, [_bare(each) for each in array.ravel()])
    found = datatype or next((each for each, dtype in _DTYPES.items() if array.dtype.newbyteorder("<") == dtype), None)
    if found is None:
        raise TypeError(f"{name}: there is no datatype for an array of {array.dtype}; give it another with astype")
    if found not in _DTYPES:
        return Tensor.of_values(name, found, array.shape, array.ravel().tolist())
    return Tensor.of_raw(name, found, array.shape, np.ascontiguousarray(array, _DTYPES[found]).tobytes())


def _bare(element: Any) -> bytes | str:  # Any: an element of numpy's
    return bytes(element) if isinstance(element, bytes) else str(element)
