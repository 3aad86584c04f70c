"""Checks of weight files before the engine starts: the format, and whole files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from appliance.core.errors import LoadError
from appliance.storage import bounded_json

# The format's own limit (https://huggingface.co/docs/safetensors, "Format").
_MAX_HEADER_BYTES = 100_000_000


def has_only_pickles(artifact: Path) -> bool:
    """Whether a directory has pickled weights and no safetensors."""
    return not any(artifact.glob("*.safetensors")) and any((*artifact.glob("*.bin"), *artifact.glob("*.pt")))


def weight_bytes(artifact: Path, element_bytes: int | None = None) -> int:
    """Return the bytes of a directory's safetensors, or of its pickles if it has nothing else.

    `element_bytes` is the size of each element once it is loaded; None counts the elements as they are stored.
    """
    if has_only_pickles(artifact):
        return sum(file.stat().st_size for pattern in ("*.bin", "*.pt") for file in artifact.glob(pattern))
    headers = [_read_header(file) for file in artifact.glob("*.safetensors")]
    return sum(each.tensor_bytes if element_bytes is None else each.elements * element_bytes for each in headers)


def require_weights(artifact: Path, *, allow_pickle: bool = False) -> None:
    """Raise LoadError unless `artifact` is a directory with whole safetensors, or with pickles that are allowed."""
    files = sorted(artifact.glob("*.safetensors")) if artifact.is_dir() else []
    if not files and not (allow_pickle and has_only_pickles(artifact)):
        reason = "has no .safetensors file" if artifact.is_dir() else "is a single file, not a model's directory"
        raise LoadError(
            f"{artifact} {reason}; give a directory of safetensors, or a .gguf file "
            "(pickled weights can run code when they are read, and need allow_pickle: true in the model's storage)"
        )
    for file in files:
        expected, actual = _read_header(file).file_bytes, file.stat().st_size
        if expected != actual:
            raise LoadError(
                f"{file} has {actual} bytes, but {expected} by its header; it is incomplete: download it again"
            )


class _Header(NamedTuple):
    """The sizes that the header of a safetensors file states."""

    file_bytes: int
    tensor_bytes: int
    elements: int


def _read_header(file: Path) -> _Header:
    try:
        with file.open("rb") as stream:
            # 8 bytes with the length of the JSON that follows; after it the tensors.
            length = int.from_bytes(stream.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header = bounded_json.parse(stream.read(length))
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        end = max((tensor["data_offsets"][1] for tensor in tensors), default=0)
        return _Header(8 + length + end, end, sum(math.prod(tensor["shape"]) for tensor in tensors))
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise LoadError(f"{file} is not a safetensors file ({error}); download it again") from error
