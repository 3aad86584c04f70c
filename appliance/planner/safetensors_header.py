"""The tensors of a model by the headers of its safetensors files, which are read alone.

The format: 8 bytes with the header's length, the header in JSON, the tensors
(https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from appliance.core.errors import ArtifactCorruptError
from appliance.planner.tensor_info import BITS, TensorInfo
from appliance.storage import bounded_json
from appliance.storage.remote_reader import Range, RemoteReader

_LENGTH_BYTES = 8

# The format's own limit.
_LARGEST_HEADER = 100_000_000

# All headers of a model together; those of DeepSeek-V3, with 91,000 tensors, have 12 MB.
_LARGEST_HEADERS = 256 * 1024 * 1024

MOST_TENSORS = 1_000_000
"""
Most tensors of a model that is planned; the largest known ones have 150,000.
"""

_INDEX = "model.safetensors.index.json"
_LARGEST_INDEX = 100_000_000


@dataclass(frozen=True, slots=True)
class RangeRead:
    """What was read for a plan: the tensors, and how many bytes it took."""

    tensors: list[TensorInfo]
    read_bytes: int


def config_of(peek: RemoteReader) -> tuple[Mapping[str, Any], int]:  # Any: JSON values
    """The `config.json` of a model and its size in bytes.

    Raises:
        ArtifactCorruptError: there is none, or it is not JSON.
    """
    if "config.json" not in peek.files:
        raise ArtifactCorruptError(
            f"{peek.place}: has no config.json; a model's directory has one, which says what it is"
        )
    _require_size(peek, "config.json", peek.files["config.json"], bounded_json.CONFIG_BYTES)
    raw = peek.read([Range("config.json", 0, peek.files["config.json"])])[0]
    return _mapping(peek, raw, "config.json"), len(raw)


def tensors_of(peek: RemoteReader) -> RangeRead:
    """All tensors of the files that vLLM would load; none where there are no safetensors.

    Raises:
        ArtifactCorruptError: a file is not safetensors.
    """
    names, index_bytes = _files(peek)
    lengths = peek.read([Range(name, 0, min(_LENGTH_BYTES, peek.files[name])) for name in names])
    ranges = []
    for name, raw in zip(names, lengths, strict=True):
        length = int.from_bytes(raw, "little")
        if len(raw) < _LENGTH_BYTES or length > min(_LARGEST_HEADER, peek.files[name]):
            raise ArtifactCorruptError(f"{peek.place}: {name} is not a safetensors file; bring the model again")
        ranges.append(Range(name, _LENGTH_BYTES, _LENGTH_BYTES + length))
    _require_size(peek, f"the headers of {len(ranges)} files", sum(each.size for each in ranges), _LARGEST_HEADERS)
    tensors: dict[str, TensorInfo] = {}
    for name, raw in zip(names, peek.read(ranges), strict=True):
        data_bytes = peek.files[name] - _LENGTH_BYTES - len(raw)
        tensors |= {each.name: each for each in _tensors(_mapping(peek, raw, name), peek, name, data_bytes)}
        require_count(peek, name, len(tensors))
    read = index_bytes + sum(each.size for each in ranges) + _LENGTH_BYTES * len(names)
    return RangeRead(list(tensors.values()), read)


def _files(peek: RemoteReader) -> tuple[list[str], int]:
    """The files to read: those of the index where there is one, since others hold the same weights once more."""
    names = [name for name in peek.files if name.endswith(".safetensors") and "/" not in name]
    size = peek.files.get(_INDEX, 0)
    if not size or len(names) < 2:
        return names, 0
    _require_size(peek, _INDEX, size, _LARGEST_INDEX)
    index = _mapping(peek, peek.read([Range(_INDEX, 0, size)])[0], _INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(each, str) for each in index.values()):
        raise ArtifactCorruptError(f"{peek.place}: {_INDEX} has no weight_map of file names; bring the model again")
    indexed: Collection[str] = set(index.values())
    return [name for name in names if name in indexed] or names, size


def _tensors(
    header: Mapping[str, Any], peek: RemoteReader, name: str, data_bytes: int
) -> list[TensorInfo]:  # Any: JSON values
    entries = {tensor: entry for tensor, entry in header.items() if tensor != "__metadata__"}
    try:
        found = {tensor: _tensor(tensor, entry) for tensor, entry in entries.items()}
        _require_layout(found, data_bytes)
    except ValueError as error:
        raise ArtifactCorruptError(
            f"{peek.place}: {name} is not a safetensors file: {error}; bring the model again"
        ) from error
    return [tensor for tensor, _, _ in found.values()]


def _tensor(name: str, entry: Any) -> tuple[TensorInfo, int, int]:  # Any: JSON values
    """A tensor, and where it begins and ends."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]}:
            if dtype not in BITS:
                raise ValueError(f"the tensor {name[:200]!r} has the unknown type {dtype[:20]!r}")
            return TensorInfo(name, dtype, tuple(shape)), start, end
    raise ValueError(f"the tensor {name[:200]!r} must have a dtype, a shape and two data_offsets")


def _require_layout(found: Mapping[str, tuple[TensorInfo, int, int]], data_bytes: int) -> None:
    """Return where each tensor has as many bytes as its shape needs, and begins where the one before it ends.

    Raises:
        ValueError: one has not; the format allows neither holes nor bytes that two tensors share.
    """
    at = 0
    for tensor, start, end in sorted(found.values(), key=itemgetter(1, 2)):
        if start != at or end - start != tensor.size_bytes or end > data_bytes:
            raise ValueError(
                f"the data_offsets of the tensor {tensor.name[:200]!r} are {start} and {end}; "
                f"must be {at} and {at + tensor.size_bytes} by the tensors before it, in {data_bytes} bytes of data"
            )
        at = end


def require_count(peek: RemoteReader, name: str, tensors: int) -> None:
    """Return where a model has no more tensors than can be planned.

    Raises:
        ArtifactCorruptError: it has.
    """
    if tensors > MOST_TENSORS:
        raise ArtifactCorruptError(f"{peek.place}: {name} has {tensors} tensors; must be at most {MOST_TENSORS}")


def _require_size(peek: RemoteReader, name: str, size: int, most: int) -> None:
    try:
        bounded_json.require_size(size, most)
    except ValueError as error:
        raise ArtifactCorruptError(f"{peek.place}: {name} cannot be read: {error}; bring the model again") from error


def _mapping(peek: RemoteReader, raw: bytes, name: str) -> Mapping[str, Any]:  # Any: JSON values
    try:
        found = bounded_json.parse(raw)
    except ValueError as error:
        raise ArtifactCorruptError(f"{peek.place}: {name} is not JSON ({error}); bring the model again") from error
    if not isinstance(found, dict):
        raise ArtifactCorruptError(f"{peek.place}: {name} is not a JSON object; bring the model again")
    return found
