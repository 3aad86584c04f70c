"""Compares two configs key by key, and says how a running server applies each difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Secret, SecretStr
from pydantic.fields import FieldInfo

from appliance.config.base import BaseConfig, Change
from appliance.config.loader import LoadedConfig
from appliance.config.masking import MASK
from appliance.config.models import MODEL_CONFIGS, ModelConfig
from appliance.config.raw_config import DataPath, dotted
from appliance.config.root import Config
from appliance.config.storage import LOCK_FILE_NAME

ABSENT = object()
"""Stands for a value that one of the two configs lacks."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A key with different values in two configs; the values are JSON, with ``***`` for secrets, or ABSENT."""

    path: str
    """Dotted, with models by their names, as ``--set`` writes it."""

    old: Any  # Any: JSON values
    new: Any
    change: Change
    model: str | None = None
    """Name of the model it belongs to."""


def differences(old: LoadedConfig, new: LoadedConfig) -> list[Difference]:
    """Every key in which two configs differ, in the order of the schema; free keys, comments and order do not count."""
    shared = _models_with_shared_engines(old.config) | _models_with_shared_engines(new.config)
    # The default lock file follows from the path of the config.
    locks = {str(loaded.path.with_name(LOCK_FILE_NAME)) for loaded in (old, new) if loaded.path is not None}
    found = []
    for each in _compare(old.config, new.config, (), Change.RESTART, old.hidden | new.hidden):
        if each.path != "storage.lock_file" or not {each.old, each.new} <= locks:
            is_shared = each.change is Change.SWAP and each.model in shared
            found.append(replace(each, change=Change.RESTART) if is_shared else each)
    return found


def _models_with_shared_engines(config: Config) -> set[str]:
    """The names of models whose engine several workers share; it accepts each of them once, so it is not replaced."""
    is_alone = config.server.workers in (1, "auto")
    return set() if is_alone else {model.name for model in config.models if model.backend == "vllm"}


def change_of(field: FieldInfo, above: Change) -> Change:
    """The change that a field declares, or the one declared above it."""
    return next((each for each in field.metadata if isinstance(each, Change)), above)


def keys_of(change: Change, model_config: type[BaseConfig] = Config, path: str = "") -> Iterator[str]:
    """The topmost keys that declare this change."""
    for name, field in model_config.model_fields.items():
        key = f"{path}{field.alias or name}"
        if change in field.metadata:
            yield key
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseConfig):
            yield from keys_of(change, field.annotation, f"{key}.")
        elif model_config is Config and name == "models":
            found = (each for model in MODEL_CONFIGS.values() for each in keys_of(change, model, "models.NAME."))
            yield from dict.fromkeys(found)


def _compare(
    old: object, new: object, path: DataPath, change: Change, hidden: frozenset[DataPath]
) -> Iterator[Difference]:
    """The differences at `path` and below it; the values at the paths `hidden` are not shown."""
    if old == new:
        return
    if isinstance(old, BaseConfig) and type(old) is type(new):
        for name, field in type(old).model_fields.items():
            below = (*path, field.alias or name)
            yield from _compare(getattr(old, name), getattr(new, name), below, change_of(field, change), hidden)
        return
    olds, news = _parts(old), _parts(new)
    if olds is None or news is None:
        model = str(path[1]) if len(path) > 1 and path[0] == "models" else None
        yield Difference(_by_name(path), _shown(old, path, hidden), _shown(new, path, hidden), change, model)
        return
    for part in dict.fromkeys((*olds, *news)):
        yield from _compare(olds.get(part, ABSENT), news.get(part, ABSENT), (*path, part), change, hidden)


def _parts(value: object) -> Mapping[str | int, object] | None:
    """The parts that are compared one by one: entries of a mapping or of a list of configs, models by name.

    None for a single value, such as another list.
    """
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, tuple | list) or not all(isinstance(each, BaseConfig) for each in value):
        return None
    return {item.name if isinstance(item, ModelConfig) else index: item for index, item in enumerate(value)}


def _shown(value: Any, path: DataPath, hidden: frozenset[DataPath]) -> Any:  # Any: JSON values
    if value is ABSENT or value is None:
        return value
    if isinstance(value, SecretStr | Secret) or path in hidden:
        return MASK
    if isinstance(value, BaseConfig):
        fields = type(value).model_fields.items()
        given = {field.alias or name: getattr(value, name) for name, field in fields if _is_given(value, name, field)}
        return _shown(given, path, hidden)
    if isinstance(value, Mapping):
        return {key: _shown(item, (*path, key), hidden) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_shown(item, (*path, index), hidden) for index, item in enumerate(value)]
    return str(value) if isinstance(value, Path) else value


def _is_given(config: BaseConfig, name: str, field: FieldInfo) -> bool:
    return field.is_required() or getattr(config, name) != field.get_default(call_default_factory=True)


def _by_name(path: DataPath) -> str:
    """The path as ``--set`` writes it: ``models.smollm2.engine.max_model_len``."""
    if path[:1] != ("models",) or len(path) < 2:
        return dotted(path)
    below = dotted(path[2:])
    return f"models.{path[1]}" + (f".{below}" if below and not below.startswith("[") else below)
