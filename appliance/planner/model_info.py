"""What a plan needs to know of a model, read from the headers of its files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import ArtifactCorruptError
from appliance.planner.expected_tensors import expected_tensors
from appliance.planner.gguf_header import read_gguf
from appliance.planner.model_config import Architecture, HfConfig
from appliance.planner.safetensors_header import TensorInfo, read_config, read_tensors, require_tensor_count
from appliance.planner.weight_sharding import TensorGroup, group_tensors
from appliance.storage.file_reader import FileReader, open_reader

_CONFIG = "config.json"


@dataclass(frozen=True)
class ModelInfo:
    """The architecture and the tensors of a model.

    `source` says where the tensors come from: safetensors headers, a GGUF file, or config.json alone.
    `read_bytes` were read to know it, of `size_bytes` in all files.
    """

    architecture: Architecture
    tensors: Sequence[TensorInfo]
    source: str
    files: int
    size_bytes: int
    read_bytes: int
    is_local: bool

    @cached_property
    def groups(self) -> list[TensorGroup]:
        """The tensors that vLLM loads; equal ones are counted together."""
        return group_tensors(self.tensors, self.architecture)

    @cached_property
    def stored_bytes(self) -> int:
        """Bytes of all tensors in the checkpoint."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    @cached_property
    def parameters(self) -> int | None:
        """Number of parameters; None if the checkpoint is quantized, because packed weights are not counted."""
        if self.architecture.quantization is not None:
            return None
        return sum(group.elements for group in self.groups)


def inspect_model(storage: StorageConfig, settings: GlobalStorageConfig) -> ModelInfo:
    """Read config and tensor headers, and no weights.

    Raises:
        StorageError: the files cannot be read, or are not a model.
    """
    with open_reader(storage, settings) as files:
        file, config, tensors, read_bytes = _read_config(files)
        source = "the GGUF file, as it is converted"
        if file == _CONFIG:
            tensors, tensor_bytes = read_tensors(files)
            source = "the headers of its safetensors" if tensors else "config.json alone"
            read_bytes += tensor_bytes
        with corrupt_if_invalid(files.location, file):
            architecture = Architecture(config)
        if not tensors:
            require_tensor_count(files, file, architecture.layers * (architecture.experts + 1) * 3)
            with corrupt_if_invalid(files.location):
                tensors = expected_tensors(architecture)
        size_bytes = sum(files.files.values())
        return ModelInfo(architecture, tensors, source, len(files.files), size_bytes, read_bytes, files.is_local)


def inspect_config(storage: StorageConfig, settings: GlobalStorageConfig) -> Architecture:
    """Read the architecture alone.

    Raises:
        StorageError: config.json cannot be read, or does not describe a model.
    """
    with open_reader(storage, settings) as files:
        file, config, _, _ = _read_config(files)
        with corrupt_if_invalid(files.location, file):
            return Architecture(config)


def _read_config(files: FileReader) -> tuple[str, HfConfig, list[TensorInfo], int]:
    """Return the file of the config, the config, the tensors if it is a GGUF file, and how many bytes were read."""
    gguf = next((name for name in files.files if name.endswith(".gguf")), None)
    if gguf is not None:
        return gguf, *read_gguf(files, gguf)
    config, read_bytes = read_config(files)
    return _CONFIG, config, [], read_bytes


@contextmanager
def corrupt_if_invalid(location: str, file: str = _CONFIG) -> Iterator[None]:
    """Name the file whose numbers do not describe a model."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise ArtifactCorruptError(
            f"{location}: {file} does not say what the model is ({error}); no plan can be made"
        ) from error
