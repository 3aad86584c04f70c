"""A model as far as a plan needs to know it, read from the beginnings of its files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import ArtifactCorruptError
from appliance.planner.expected_tensors import expected
from appliance.planner.gguf_header import read_gguf
from appliance.planner.model_config import Architecture, Config, architecture_of
from appliance.planner.safetensors_header import config_of, require_count, tensors_of
from appliance.planner.tensor_info import TensorInfo
from appliance.planner.tensor_parallel import Group, ShardPart, grouped, parts
from appliance.storage.remote_reader import RemoteReader, peek

_CONFIG = "config.json"


@dataclass(frozen=True)
class ModelInfo:
    """What a model is, which tensors it has, and what was read to know it.

    `source` says where the tensors are from: headers, a GGUF file, or the config alone.
    """

    architecture: Architecture
    tensors: Sequence[TensorInfo]
    source: str
    files: int
    size_bytes: int
    read_bytes: int
    is_here: bool

    @cached_property
    def parts(self) -> list[ShardPart]:
        """The tensors that are loaded, and how they are cut."""
        return parts(list(self.tensors), self.architecture)

    @cached_property
    def groups(self) -> list[Group]:
        """Those that are alike together."""
        return grouped(self.parts)

    @cached_property
    def stored_bytes(self) -> int:
        """Bytes of all tensors in the checkpoint."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    @cached_property
    def parameters(self) -> int | None:
        """How many parameters it has; None where they are packed."""
        if self.architecture.quantization is not None:
            return None
        return sum(part.tensor.elements for part in self.parts)


def inspect_model(storage: StorageConfig, settings: GlobalStorageConfig) -> ModelInfo:
    """Read what a plan needs of a model, and no weights.

    Raises:
        StorageError: the files cannot be read, or are no model.
    """
    with peek(storage, settings) as files:
        ggufs = [name for name in files.files if name.endswith(".gguf")]
        if ggufs:
            config, tensors, read = read_gguf(files, ggufs[0])
            return _subject(files, config, tensors, "the GGUF file, as it is converted", read, ggufs[0])
        config, config_bytes = config_of(files)
        found = tensors_of(files)
        source = "the headers of its safetensors" if found.tensors else "config.json alone"
        return _subject(files, config, found.tensors, source, config_bytes + found.read_bytes)


def inspect_config(storage: StorageConfig, settings: GlobalStorageConfig) -> Architecture:
    """Read only what a model says it is.

    Raises:
        StorageError: it cannot be read, or says nothing.
    """
    with peek(storage, settings) as files:
        ggufs = [name for name in files.files if name.endswith(".gguf")]
        config = read_gguf(files, ggufs[0])[0] if ggufs else config_of(files)[0]
        return _architecture(config, files.place, ggufs[0] if ggufs else _CONFIG)


def _subject(
    files: RemoteReader, config: Config, tensors: Sequence[TensorInfo], source: str, read: int, file: str = _CONFIG
) -> ModelInfo:
    model = _architecture(config, files.place, file)
    size = sum(files.files.values())
    if not tensors:
        require_count(files, file, model.layers * (model.experts + 1) * 3)
    return ModelInfo(
        model, tensors or _expected(model, files.place), source, len(files.files), size, read, files.is_here
    )


def _expected(model: Architecture, place: str) -> list[TensorInfo]:
    with _told(place):
        return expected(model)


def _architecture(config: Config, place: str, file: str = _CONFIG) -> Architecture:
    with _told(place, file):
        return architecture_of(config)


@contextmanager
def _told(place: str, file: str = _CONFIG) -> Iterator[None]:
    """Name the file that has numbers which make no model."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise ArtifactCorruptError(
            f"{place}: {file} does not say what the model is ({error}); no plan can be made"
        ) from error
