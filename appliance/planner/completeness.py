"""Whether the files of a model are complete: each shard of its index, whole weights, a tokenizer, a chat template."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from appliance.config.engine import EngineConfig
from appliance.config.models import GenerativeConfig, LanguageModelConfig, ModelConfig
from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import ArtifactCorruptError
from appliance.planner.safetensors_header import read_config, read_json, read_tensors, weight_files
from appliance.storage import bounded_json
from appliance.storage.file_reader import FileReader, open_reader

# The files of the tokenizers that transformers and mistral-common know, and the code of others.
_TOKENIZER = re.compile(
    r"(?:.*/)?(?:tokeni[sz](?:er(?!_config)|ation).*|vocab\..*|tekken\.json|bpe\.codes|.*\.(?:tiktoken|model|vocab))"
)
_CHAT_TEMPLATE = re.compile(r"chat_template\.(?:jinja|json)|additional_chat_templates/.*|tekken\.json")
_TOKENIZER_CONFIG = "tokenizer_config.json"

# A model in few files is often without an index; the headers of more would be many requests.
_MAX_REMOTE_HEADERS = 8


def check_files(config: ModelConfig, storage: StorageConfig | None, settings: GlobalStorageConfig) -> Sequence[str]:
    """Return what a model of vLLM's lacks that it can be served without, read from its files where they are.

    Raises:
        ArtifactCorruptError: something is missing without which no engine starts.
        StorageError: the files cannot be read now.
    """
    if not isinstance(config, LanguageModelConfig) or not isinstance(config.engine, EngineConfig) or storage is None:
        return ()
    with open_reader(storage, settings) as files:
        return _check(files, config, config.engine)


def check_store(config: ModelConfig, settings: GlobalStorageConfig) -> None:
    """Check what a store lists before it is downloaded; files on this machine are checked when they are verified.

    Raises:
        ArtifactCorruptError: something is missing without which no engine starts.
        StorageError: the files cannot be read now.
    """
    if not isinstance(config, LanguageModelConfig) or not isinstance(config.engine, EngineConfig) or not config.storage:
        return
    with open_reader(config.storage, settings) as files:
        if not files.is_local:
            _check(files, config, config.engine)


def _check(files: FileReader, config: LanguageModelConfig, engine: EngineConfig) -> Sequence[str]:
    names, _ = weight_files(files)
    # A GGUF file has everything in it, and other formats have files of their own.
    if not names or "load_format" in engine.args:
        return ()
    if files.is_local or len(names) <= _MAX_REMOTE_HEADERS:
        read_tensors(files)
    # Other files than a transformer's may be in other formats, and a single file is no model.
    if "config.json" not in files.files or "model_type" not in read_config(files)[0]:
        return ()
    _require_tokenizer(files, engine)
    return tuple(_gaps(files, config))


def _require_tokenizer(files: FileReader, engine: EngineConfig) -> None:
    if engine.args.get("skip_tokenizer_init") or any(map(_TOKENIZER.fullmatch, files.files)):
        return
    raise ArtifactCorruptError(
        f"{files.location}: has no tokenizer, such as tokenizer.json or tokenizer.model; add it to the model's files"
    )


def _gaps(files: FileReader, config: LanguageModelConfig) -> Iterator[str]:
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
