"""
The tensors of a model by the headers of its safetensors files, which are read alone.

The format: 8 bytes with the header's length, the header in JSON, the tensors
(https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.errors import ArtifactCorruptError
from appliance.plan.tensor import BITS, Tensor
from appliance.storage.peeking import Peek, Range

_LENGTH_BYTES = 8

# The format's own limit.
_LARGEST_HEADER = 100_000_000

_INDEX = "model.safetensors.index.json"
_LARGEST_INDEX = 100_000_000


@dataclass(frozen=True, slots=True)
class Read:
    """
    What was read for a plan: the tensors, and how many bytes it took.
    """

    tensors: list[Tensor]
    read_bytes: int


def config_of(peek: Peek) -> tuple[Mapping[str, Any], int]:  # Any: JSON values
    """
    The `config.json` of a model and its size in bytes.

    Raises:
        ArtifactCorruptError: there is none, or it is not JSON.
    """
    if "config.json" not in peek.files:
        raise ArtifactCorruptError(
            f"{peek.place}: has no config.json; a model's directory has one, which says what it is"
        )
    raw = peek.read([Range("config.json", 0, peek.files["config.json"])])[0]
    return _mapping(peek, raw, "config.json"), len(raw)


def tensors_of(peek: Peek) -> Read:
    """
    All tensors of the files that vLLM would load; none where there are no safetensors.

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
    tensors: dict[str, Tensor] = {}
    for name, raw in zip(names, peek.read(ranges), strict=True):
        tensors |= {each.name: each for each in _tensors(_mapping(peek, raw, name), peek, name)}
    read = index_bytes + sum(each.size for each in ranges) + _LENGTH_BYTES * len(names)
    return Read(list(tensors.values()), read)


def _files(peek: Peek) -> tuple[list[str], int]:
    """
    The files to read: those of the index where there is one, since others hold the same weights once more.
    """
    names = [name for name in peek.files if name.endswith(".safetensors") and "/" not in name]
    size = peek.files.get(_INDEX, 0)
    if not size or size > _LARGEST_INDEX or len(names) < 2:
        return names, 0
    indexed: Collection[str] = set(
        _mapping(peek, peek.read([Range(_INDEX, 0, size)])[0], _INDEX)["weight_map"].values()
    )
    return [name for name in names if name in indexed] or names, size


def _tensors(header: Mapping[str, Any], peek: Peek, name: str) -> list[Tensor]:  # Any: JSON values
    try:
        found = [
            Tensor(tensor, str(entry["dtype"]), tuple(map(int, entry["shape"])))
            for tensor, entry in header.items()
            if tensor != "__metadata__"
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactCorruptError(f"{peek.place}: {name} is not a safetensors file; bring the model again") from error
    if unknown := {each.dtype for each in found} - BITS.keys():
        raise ArtifactCorruptError(f"{peek.place}: {name} has tensors of an unknown type, {', '.join(sorted(unknown))}")
    return found


def _mapping(peek: Peek, raw: bytes, name: str) -> Mapping[str, Any]:  # Any: JSON values
    try:
        found = json.loads(raw)
    except ValueError as error:
        raise ArtifactCorruptError(f"{peek.place}: {name} is not JSON ({error}); bring the model again") from error
    if not isinstance(found, dict):
        raise ArtifactCorruptError(f"{peek.place}: {name} is not a JSON object; bring the model again")
    return found
