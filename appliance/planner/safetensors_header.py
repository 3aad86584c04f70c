"""Tensors of a model: type, shape and size, from the headers of its safetensors files.

The format: 8 bytes with the header's length, the header in JSON, the data of the tensors
(https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from operator import itemgetter
from typing import Any

from appliance.core.errors import ArtifactCorruptError
from appliance.storage import bounded_json
from appliance.storage.file_reader import FileRange, FileReader

_DTYPES = "F4 F6_E2M3 F6_E3M2 F8_E4M3 F8_E5M2 F8_E8M0 I8 U8 BF16 F16 I16 U16 F32 I32 U32 F64 I64 U64"

BITS: Mapping[str, int] = {"BOOL": 8} | {dtype: int(re.findall(r"\d+", dtype)[0]) for dtype in _DTYPES.split()}
"""Bits of one element, by safetensors' dtype."""

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

_LENGTH_BYTES = 8

# The limit of the format.
_MAX_HEADER_BYTES = 100_000_000

# All headers of a model together; DeepSeek-V3, with 91,000 tensors, has 12 MB.
_MAX_HEADERS_BYTES = 256 * 1024 * 1024

# The largest known models have 150,000.
_MAX_TENSORS = 1_000_000

_INDEX = "model.safetensors.index.json"
_MAX_INDEX_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint; `dtype` is a key of `BITS`.

    Raises:
        ValueError: the shape, which comes from a file, is not valid.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
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


def read_config(files: FileReader) -> tuple[Mapping[str, Any], int]:  # Any: JSON values
    """Return `config.json` and its size in bytes.

    Raises:
        ArtifactCorruptError: it is missing, or not a JSON object.
    """
    if "config.json" not in files.files:
        raise ArtifactCorruptError(
            f"{files.location}: has no config.json; a model's directory has one, which says what it is"
        )
    return read_json(files, "config.json", bounded_json.CONFIG_BYTES)


def read_tensors(files: FileReader) -> tuple[list[TensorInfo], int]:
    """Return the tensors of the safetensors files that vLLM loads, and how many bytes were read.

    Raises:
        ArtifactCorruptError: a file is not safetensors.
    """
    names, index_bytes = weight_files(files)
    lengths = files.read([FileRange(name, 0, min(_LENGTH_BYTES, files.files[name])) for name in names])
    ranges = []
    for name, raw in zip(names, lengths, strict=True):
        length = int.from_bytes(raw, "little")
        if len(raw) < _LENGTH_BYTES or length > min(_MAX_HEADER_BYTES, files.files[name]):
            raise _corrupt(files, name, "is not a safetensors file")
        ranges.append(FileRange(name, _LENGTH_BYTES, _LENGTH_BYTES + length))
    header_bytes = sum(each.size for each in ranges)
    _require_size(files, f"the headers of {len(ranges)} files", header_bytes, _MAX_HEADERS_BYTES)
    tensors: dict[str, TensorInfo] = {}
    for name, raw in zip(names, files.read(ranges), strict=True):
        header = _json_object(files, name, raw)
        try:
            tensors |= _tensors(header, files.files[name] - _LENGTH_BYTES - len(raw))
        except ValueError as error:
            raise _corrupt(files, name, f"is not a safetensors file: {error}") from error
        require_tensor_count(files, name, len(tensors))
    return list(tensors.values()), index_bytes + header_bytes + _LENGTH_BYTES * len(names)


def require_tensor_count(files: FileReader, name: str, tensors: int) -> None:
    """Check the number of tensors of a model.

    Raises:
        ArtifactCorruptError: there are too many.
    """
    if tensors > _MAX_TENSORS:
        raise ArtifactCorruptError(f"{files.location}: {name} has {tensors} tensors; must be at most {_MAX_TENSORS}")


def weight_files(files: FileReader) -> tuple[list[str], int]:
    """Return the files of the index, if there is one, and its size: other files hold the same weights again.

    Raises:
        ArtifactCorruptError: the index is not valid, or names a file that is missing.
    """
    names = [name for name in files.files if name.endswith(".safetensors") and "/" not in name]
    if not files.files.get(_INDEX):
        return names, 0
    index, size = read_json(files, _INDEX, _MAX_INDEX_BYTES)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(each, str) for each in weight_map.values()):
        raise _corrupt(files, _INDEX, "has no weight_map of file names")
    indexed = set(weight_map.values())
    if missing := sorted(indexed - files.files.keys()):
        more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
        raise _corrupt(files, _INDEX, f"names {missing[0][:200]}{more}, which the model does not have")
    return [name for name in names if name in indexed], size


def _tensors(header: Mapping[str, Any], data_bytes: int) -> dict[str, TensorInfo]:  # Any: JSON values
    """Return the tensors of a header by their names.

    Raises:
        ValueError: one is not valid, or does not begin where the previous one ends, as the format requires.
    """
    found = [_tensor(name, entry) for name, entry in header.items() if name != "__metadata__"]
    at = 0
    for tensor, start, end in sorted(found, key=itemgetter(1, 2)):
        if start != at or end - start != tensor.size_bytes:
            raise ValueError(
                f"the data_offsets of the tensor {tensor.name[:200]!r} are {start} and {end}; "
                f"must be {at} and {at + tensor.size_bytes} by the tensors before it, in {data_bytes} bytes of data"
            )
        at = end
    if at > data_bytes:
        raise ValueError(f"it has {data_bytes} bytes of tensors, and {at} by its header, so it is incomplete")
    return {tensor.name: tensor for tensor, _, _ in found}


def _tensor(name: str, entry: Any) -> tuple[TensorInfo, int, int]:  # Any: JSON values
    """Return a tensor and the start and end of its data."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]}:
            if dtype not in BITS:
                raise ValueError(f"the tensor {name[:200]!r} has the unknown type {dtype[:20]!r}")
            return TensorInfo(name, dtype, tuple(shape)), start, end
    raise ValueError(f"the tensor {name[:200]!r} must have a dtype, a shape and two data_offsets")


def read_json(files: FileReader, name: str, max_bytes: int) -> tuple[Mapping[str, Any], int]:  # Any: JSON values
    """Return the object in a JSON file, and the size of the file.

    Raises:
        ArtifactCorruptError: it is too large, or no JSON object.
    """
    size = files.files[name]
    _require_size(files, name, size, max_bytes)
    return _json_object(files, name, files.read([FileRange(name, 0, size)])[0]), size


def _json_object(files: FileReader, name: str, raw: bytes) -> Mapping[str, Any]:  # Any: JSON values
    try:
        found = bounded_json.parse(raw)
    except ValueError as error:
        raise _corrupt(files, name, f"is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise _corrupt(files, name, "is not a JSON object")
    return found


def _require_size(files: FileReader, name: str, size: int, max_bytes: int) -> None:
    try:
        bounded_json.require_size(size, max_bytes)
    except ValueError as error:
        raise _corrupt(files, name, f"cannot be read: {error}") from error


def _corrupt(files: FileReader, name: str, fault: str) -> ArtifactCorruptError:
    return ArtifactCorruptError(f"{files.location}: {name} {fault}; fetch the model again")
