"""A look at the weights before the engine starts: the right format, and whole files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from appliance.core.errors import LoadError
from appliance.storage import bounded_json

# The format's own limit (https://huggingface.co/docs/safetensors, "Format").
_LARGEST_HEADER = 100_000_000


def has_only_pickles(artifact: Path) -> bool:
    """Whether a directory has pickled weights and no safetensors."""
    return not any(artifact.glob("*.safetensors")) and any((*artifact.glob("*.bin"), *artifact.glob("*.pt")))


def weight_bytes(artifact: Path, element_bytes: int | None = None) -> int:
    """Bytes of the tensors in a directory's safetensors, or of its pickles where it has nothing else.

    `element_bytes` counts each element with so many bytes, as plain weights have once they are loaded; None as stored.

    Raises:
        LoadError: a file is no safetensors.
    """
    if has_only_pickles(artifact):
        return sum(file.stat().st_size for pattern in ("*.bin", "*.pt") for file in artifact.glob(pattern))
    headers = [_header(file) for file in artifact.glob("*.safetensors")]
    if element_bytes is None:
        return sum(header.tensor_bytes for header in headers)
    return sum(header.elements for header in headers) * element_bytes


def require_weights(artifact: Path, *, allow_pickle: bool = False) -> None:
    """Return when `artifact` is a directory with safetensors, each of them whole, or with pickles that are allowed.

    Raises:
        LoadError: it is not, or one is cut off or no safetensors at all.
    """
    files = sorted(artifact.glob("*.safetensors")) if artifact.is_dir() else []
    if not files and allow_pickle and has_only_pickles(artifact):
        return
    if not files:
        fault = "has no .safetensors file" if artifact.is_dir() else "is a single file, not a model's directory"
        raise LoadError(
            f"{artifact} {fault}; give a directory of safetensors, or a .gguf file "
            "(pickled weights can run code when they are read, and want allow_pickle: true in the model's storage)"
        )
    for file in files:
        promised, actual = _header(file).file_bytes, file.stat().st_size
        if promised != actual:
            raise LoadError(
                f"{file} has {actual} bytes, and its header promises {promised}; it is cut off: bring it again"
            )


@dataclass(frozen=True, slots=True)
class _Header:
    """What the header of a safetensors file promises."""

    file_bytes: int
    tensor_bytes: int
    elements: int


def _header(file: Path) -> _Header:
    """Read the header: 8 bytes of length, JSON, and after it the tensors."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > _LARGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = bounded_json.parse(stream.read(length))
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        end = max((tensor["data_offsets"][1] for tensor in tensors), default=0)
        return _Header(8 + length + end, end, sum(math.prod(tensor["shape"]) for tensor in tensors))
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise LoadError(f"{file} is not a safetensors file ({error}); bring it again") from error
