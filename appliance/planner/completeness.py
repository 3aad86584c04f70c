"""Whether the files of a model are complete: whole weights, each shard of their index, a tokenizer, a chat template.

Of a predictor or an ONNX encoder, whether they have the file to load.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from appliance.config.engine import EngineConfig, FrameworkConfig, OnnxEncoderConfig
from appliance.config.models import GenerativeConfig, LocalModelConfig, ModelConfig
from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import ArtifactCorruptError
from appliance.planner.safetensors_header import read_config, read_json, read_tensors, weight_files
from appliance.storage import bounded_json
from appliance.storage.file_reader import FileReader, open_reader
from appliance.storage.selection import is_pickle, model_file, onnx_file

# The files of the tokenizers that transformers and mistral-common know, and the code of others.
_TOKENIZER = re.compile(
    r"(?:.*/)?(?:tokeni[sz](?:er(?!_config)|ation).*|vocab\..*|tekken\.json|bpe\.codes|.*\.(?:tiktoken|model|vocab))"
)
_CHAT_TEMPLATE = re.compile(r"chat_template\.(?:jinja|json)|additional_chat_templates/.*|tekken\.json")
_TOKENIZER_CONFIG = "tokenizer_config.json"

KnownEngine = EngineConfig | FrameworkConfig | OnnxEncoderConfig

# A model in few files is often without an index; the headers of more would be many requests.
_MAX_REMOTE_HEADERS = 8


def check_files(config: ModelConfig, storage: StorageConfig | None, settings: GlobalStorageConfig) -> Sequence[str]:
    """Return what a model lacks that it can be served without, read from its files where they are.

    Raises:
        ArtifactCorruptError: something is missing without which no engine starts.
        LoadError: the file to load is missing, or there are several.
        StorageError: the files cannot be read now.
    """
    if storage is None or (engine := _known_engine(config)) is None:
        return ()
    with open_reader(storage, settings) as files:
        return _check(files, config, engine)


def check_store(config: ModelConfig, settings: GlobalStorageConfig) -> None:
    """Check what a store lists before it is downloaded; files on this machine are checked when they are verified.

    Raises:
        ArtifactCorruptError: something is missing without which no engine starts.
        LoadError: the file to load is missing, or there are several.
        StorageError: the files cannot be read now.
    """
    storage = config.storages.get("model")
    if storage is None or (engine := _known_engine(config)) is None:
        return
    with open_reader(storage, settings) as files:
        if not files.is_local:
            _check(files, config, engine)


def _known_engine(config: ModelConfig) -> KnownEngine | None:
    """Return the engine; None if the files are those of a class of the user's, or elsewhere."""
    engine = config.engine if isinstance(config, LocalModelConfig) else None
    return engine if isinstance(engine, KnownEngine) else None


def _check(files: FileReader, config: ModelConfig, engine: KnownEngine) -> Sequence[str]:
    if isinstance(engine, OnnxEncoderConfig):
        onnx_file(files.location, files.files, engine)
        return ()
    if isinstance(engine, FrameworkConfig):
        if not Path(files.location).is_file():
            model_file(files.location, files.files, engine)
        return ()
    names, _ = weight_files(files)
    # Other formats have files of their own.
    if "load_format" in engine.args:
        return ()
    if not names:
        # A GGUF file has everything in it.
        _require_other_weights(files)
        return ()
    if files.is_local or len(names) <= _MAX_REMOTE_HEADERS:
        read_tensors(files)
    # Other files than a transformer's may be in other formats, and a single file is no model.
    if "config.json" not in files.files or "model_type" not in read_config(files)[0]:
        return ()
    _require_tokenizer(files, engine)
    return tuple(_gaps(files, config))


def _require_other_weights(files: FileReader) -> None:
    """Check that a model without safetensors at its top has weights in another format that an engine loads."""
    if any(name.endswith(".gguf") or ("/" not in name and is_pickle(name)) for name in files.files):
        return
    inner = min((name.rpartition("/")[0] for name in files.files if name.endswith(".safetensors")), default=None)
    remedy = f"its directory {inner} has some: name that one" if inner else "add model.safetensors, or check the URI"
    raise ArtifactCorruptError(f"{files.location}: has no weights, which are safetensors or a GGUF file; {remedy}")


def _require_tokenizer(files: FileReader, engine: EngineConfig) -> None:
    if engine.args.get("skip_tokenizer_init") or any(map(_TOKENIZER.fullmatch, files.files)):
        return
    raise ArtifactCorruptError(
        f"{files.location}: has no tokenizer, such as tokenizer.json or tokenizer.model; add it to the model's files"
    )


def _gaps(files: FileReader, config: ModelConfig) -> Iterator[str]:
    if not isinstance(config, GenerativeConfig) or config.chat_template is not None:
        return
    if any(map(_CHAT_TEMPLATE.fullmatch, files.files)):
        return
    if _TOKENIZER_CONFIG in files.files:
        found, _ = read_json(files, _TOKENIZER_CONFIG, bounded_json.CONFIG_BYTES)
        if "chat_template" in found:
            return
    yield (
        "it has no chat template, so that chat requests are refused and completions are served; "
        "set chat_template if the model was trained for chats"
    )
