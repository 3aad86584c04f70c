"""Tensors of a model, from the headers of its safetensors files.

The format: 8 bytes with the header's length, the header in JSON, the data of the tensors
(https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from operator import itemgetter
from typing import Any

from appliance.core.errors import ArtifactCorruptError
from appliance.planner.tensor_info import BITS, TensorInfo
from appliance.storage import bounded_json
from appliance.storage.file_reader import FileRange, FileReader

_LENGTH_BYTES = 8

# The limit of the format.
_MAX_HEADER_BYTES = 100_000_000

# All headers of a model together; DeepSeek-V3, with 91,000 tensors, has 12 MB.
_MAX_HEADERS_BYTES = 256 * 1024 * 1024

MAX_TENSORS = 1_000_000
"""Limit on the tensors of a model; the largest known models have 150,000."""

_INDEX = "model.safetensors.index.json"
_MAX_INDEX_BYTES = 100_000_000


def read_config(files: FileReader) -> tuple[Mapping[str, Any], int]:  # Any: JSON values
    """Return `config.json` and its size in bytes.

    Raises:
        ArtifactCorruptError: it is missing, or not a JSON object.
    """
    if "config.json" not in files.files:
        raise ArtifactCorruptError(
            f"{files.location}: has no config.json; a model's directory has one, which says what it is"
        )
    _require_size(files, "config.json", files.files["config.json"], bounded_json.CONFIG_BYTES)
    raw = files.read([FileRange("config.json", 0, files.files["config.json"])])[0]
    return _mapping(files, raw, "config.json"), len(raw)


def read_tensors(files: FileReader) -> tuple[list[TensorInfo], int]:
    """Return the tensors of the safetensors files that vLLM loads, and how many bytes were read.

    Raises:
        ArtifactCorruptError: a file is not safetensors.
    """
    names, index_bytes = _index_files(files)
    lengths = files.read([FileRange(name, 0, min(_LENGTH_BYTES, files.files[name])) for name in names])
    ranges = []
    for name, raw in zip(names, lengths, strict=True):
        length = int.from_bytes(raw, "little")
        if len(raw) < _LENGTH_BYTES or length > min(_MAX_HEADER_BYTES, files.files[name]):
            raise ArtifactCorruptError(f"{files.location}: {name} is not a safetensors file; fetch the model again")
        ranges.append(FileRange(name, _LENGTH_BYTES, _LENGTH_BYTES + length))
    _require_size(files, f"the headers of {len(ranges)} files", sum(each.size for each in ranges), _MAX_HEADERS_BYTES)
    tensors: dict[str, TensorInfo] = {}
    for name, raw in zip(names, files.read(ranges), strict=True):
        data_bytes = files.files[name] - _LENGTH_BYTES - len(raw)
        tensors |= {each.name: each for each in _tensors(_mapping(files, raw, name), files, name, data_bytes)}
        require_tensor_count(files, name, len(tensors))
    read_bytes = index_bytes + sum(each.size for each in ranges) + _LENGTH_BYTES * len(names)
    return list(tensors.values()), read_bytes


def _index_files(files: FileReader) -> tuple[list[str], int]:
    """Return the files of the index, if there is one: other files hold the same weights again."""
    names = [name for name in files.files if name.endswith(".safetensors") and "/" not in name]
    size = files.files.get(_INDEX, 0)
    if not size or len(names) < 2:
        return names, 0
    _require_size(files, _INDEX, size, _MAX_INDEX_BYTES)
    index = _mapping(files, files.read([FileRange(_INDEX, 0, size)])[0], _INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(each, str) for each in index.values()):
        raise ArtifactCorruptError(f"{files.location}: {_INDEX} has no weight_map of file names; fetch the model again")
    indexed: Collection[str] = set(index.values())
    return [name for name in names if name in indexed] or names, size


def _tensors(
    header: Mapping[str, Any], files: FileReader, name: str, data_bytes: int
) -> list[TensorInfo]:  # Any: JSON values
    entries = {tensor: entry for tensor, entry in header.items() if tensor != "__metadata__"}
    try:
        found = {tensor: _tensor(tensor, entry) for tensor, entry in entries.items()}
        _require_contiguous(found, data_bytes)
    except ValueError as error:
        raise ArtifactCorruptError(
            f"{files.location}: {name} is not a safetensors file: {error}; fetch the model again"
        ) from error
    return [tensor for tensor, _, _ in found.values()]


def _tensor(name: str, entry: Any) -> tuple[TensorInfo, int, int]:  # Any: JSON values
    """Return a tensor and the start and end of its data."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]}:
            if dtype not in BITS:
                raise ValueError(f"the tensor {name[:200]!r} has the unknown type {dtype[:20]!r}")
            return TensorInfo(name, dtype, tuple(shape)), start, end
    raise ValueError(f"the tensor {name[:200]!r} must have a dtype, a shape and two data_offsets")


def _require_contiguous(found: Mapping[str, tuple[TensorInfo, int, int]], data_bytes: int) -> None:
    """Check that each tensor has as many bytes as its shape needs and begins where the previous one ends.

    Raises:
        ValueError: one does not; the format allows neither holes nor overlaps.
    """
    at = 0
    for tensor, start, end in sorted(found.values(), key=itemgetter(1, 2)):
        if start != at or end - start != tensor.size_bytes or end > data_bytes:
            raise ValueError(
                f"the data_offsets of the tensor {tensor.name[:200]!r} are {start} and {end}; "
                f"must be {at} and {at + tensor.size_bytes} by the tensors before it, in {data_bytes} bytes of data"
            )
        at = end


def require_tensor_count(files: FileReader, name: str, tensors: int) -> None:
    """Check the number of tensors of a model.

    Raises:
        ArtifactCorruptError: there are too many.
    """
    if tensors > MAX_TENSORS:
        raise ArtifactCorruptError(f"{files.location}: {name} has {tensors} tensors; must be at most {MAX_TENSORS}")


def _require_size(files: FileReader, name: str, size: int, maximum: int) -> None:
    try:
        bounded_json.require_size(size, maximum)
    except ValueError as error:
        raise ArtifactCorruptError(
            f"{files.location}: {name} cannot be read: {error}; fetch the model again"
        ) from error


def _mapping(files: FileReader, raw: bytes, name: str) -> Mapping[str, Any]:  # Any: JSON values
    try:
        found = bounded_json.parse(raw)
    except ValueError as error:
        raise ArtifactCorruptError(f"{files.location}: {name} is not JSON ({error}); fetch the model again") from error
    if not isinstance(found, dict):
        raise ArtifactCorruptError(f"{files.location}: {name} is not a JSON object; fetch the model again")
    return found
