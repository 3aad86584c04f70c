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
from appliance.planner.model_config import Architecture, HfConfig, architecture_of
from appliance.planner.safetensors_header import read_config, read_tensors, require_tensor_count
from appliance.planner.tensor_info import TensorInfo
from appliance.planner.weight_sharding import ShardedTensor, TensorGroup, group_tensors, sharded_tensors
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
    def sharded(self) -> list[ShardedTensor]:
        """The tensors that vLLM loads, with how each is sharded."""
        return sharded_tensors(self.tensors, self.architecture)

    @cached_property
    def groups(self) -> list[TensorGroup]:
        """`sharded`, with equal tensors counted together."""
        return group_tensors(self.sharded)

    @cached_property
    def stored_bytes(self) -> int:
        """Bytes of all tensors in the checkpoint."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    @cached_property
    def parameters(self) -> int | None:
        """Number of parameters; None if the checkpoint is quantized, because packed weights are not counted."""
        if self.architecture.quantization is not None:
            return None
        return sum(each.tensor.elements for each in self.sharded)


def inspect_model(storage: StorageConfig, settings: GlobalStorageConfig) -> ModelInfo:
    """Read config and tensor headers, and no weights.

    Raises:
        StorageError: the files cannot be read, or are not a model.
    """
    with open_reader(storage, settings) as files:
        config, config_bytes, gguf, tensors = _read_config(files)
        if gguf is not None:
            source, read_bytes = "the GGUF file, as it is converted", config_bytes
        else:
            tensors, tensor_bytes = read_tensors(files)
            source = "the headers of its safetensors" if tensors else "config.json alone"
            read_bytes = config_bytes + tensor_bytes
        with corrupt_if_invalid(files.location, gguf or _CONFIG):
            architecture = architecture_of(config)
        if not tensors:
            require_tensor_count(files, gguf or _CONFIG, architecture.layers * (architecture.experts + 1) * 3)
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
        config, _, gguf, _ = _read_config(files)
        with corrupt_if_invalid(files.location, gguf or _CONFIG):
            return architecture_of(config)


def _read_config(files: FileReader) -> tuple[HfConfig, int, str | None, list[TensorInfo]]:
    """Return the config, how many bytes were read, and of a GGUF model the file's name and its tensors."""
    gguf = next((name for name in files.files if name.endswith(".gguf")), None)
    if gguf is None:
        return *read_config(files), None, []
    config, tensors, read_bytes = read_gguf(files, gguf)
    return config, read_bytes, gguf, tensors


@contextmanager
def corrupt_if_invalid(location: str, file: str = _CONFIG) -> Iterator[None]:
    """Name the file whose numbers do not describe a model."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise ArtifactCorruptError(
            f"{location}: {file} does not say what the model is ({error}); no plan can be made"
        ) from error
